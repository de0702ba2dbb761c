"""Runs schedules of dualweave in ``torch.distributed.pipelining``.

`schedule` loads them. `overlap` interleaves the forward and the backward of a pair, which `pair` lets take turns, and `moe` has the
exchanges at which they do.
"""

from .moe import Exchange, Routes
from .overlap import interleave_pairs, overlap_f_b
from .pair import PairEnded, point, record_points, run_pair
from .schedule import ScheduleFile, load

__all__ = [
    "Exchange",
    "PairEnded",
    "Routes",
    "ScheduleFile",
    "interleave_pairs",
    "load",
    "overlap_f_b",
    "point",
    "record_points",
    "run_pair",
]
