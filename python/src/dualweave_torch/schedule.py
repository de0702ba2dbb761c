"""Schedule files: what ``dualweave export --format torch-csv`` writes, put into PyTorch's schedule runtime."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from .overlap import interleave_pairs

_COMPUTATION = re.compile(r"(\d+)([FBIW])(\d+)")
_COMMUNICATION = re.compile(r"\d+(SEND|RECV)_[FB]\d+")


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule in a CSV file, a row for each pipeline rank. ``dualweave import`` proves that it is whole; here it is only looked at."""

    path: str
    #: By rank: the stages that it computes.
    stages_by_rank: tuple[tuple[int, ...], ...]
    #: Of a step.
    micro_batches: int
    #: Whether it has sends and receives; if not, PyTorch adds them.
    communicates: bool

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ScheduleFile:
        """Reads it.

        Raises ``ValueError`` if the file has no schedule.
        """
        with open(path, newline="", encoding="ascii") as file:
            rows = list(csv.reader(file))
        stages, numbers = [], set()
        for row in rows:
            found = [match for cell in row for match in _COMPUTATION.findall(cell)]
            stages.append(tuple(sorted({int(stage) for stage, _, _ in found})))
            numbers |= {int(number) for _, _, number in found}
        if not numbers or sorted(sum(stages, ())) != list(range(sum(map(len, stages)))):
            raise ValueError(f"{os.fspath(path)} has no schedule of stages 0, 1, ... that are each on one rank")
        communicates = any(_COMMUNICATION.fullmatch(cell.strip()) for row in rows for cell in row)
        return cls(os.fspath(path), tuple(stages), max(numbers) + 1, communicates)

    @property
    def stages(self) -> int:
        """Of the whole model."""
        return sum(map(len, self.stages_by_rank))


def load(
    schedule: ScheduleFile | str | os.PathLike[str],
    stages: Sequence[PipelineStage],
    loss_fn: Callable[..., torch.Tensor] | None = None,
    *,
    scale_grads: bool = True,
    interleave: bool = False,
) -> _PipelineScheduleRuntime:
    """PyTorch's runtime for a schedule.

    ``stages`` are those of this rank: ``ScheduleFile.stages_by_rank[rank]``. The rest is as for PyTorch's own schedules: call
    ``step`` on what is returned. Pairs (``OVERLAP_F_B``) run their forward and their backward one after the other, or with ``interleave``
    in turns (`dualweave_torch.overlap`).

    Raises ``ValueError`` if the stages are others than the file has for this rank.
    """
    if not isinstance(schedule, ScheduleFile):
        schedule = ScheduleFile.read(schedule)
    if not stages:
        raise ValueError("a rank has at least one stage")
    rank, ranks = stages[0].group_rank, stages[0].group_size
    if ranks != len(schedule.stages_by_rank):
        raise ValueError(f"{schedule.path} is for {len(schedule.stages_by_rank)} pipeline ranks, not {ranks}")
    given = sorted(stage.stage_index for stage in stages)
    if tuple(given) != schedule.stages_by_rank[rank] or stages[0].num_stages != schedule.stages:
        raise ValueError(
            f"{schedule.path} has stages {list(schedule.stages_by_rank[rank])} of {schedule.stages} on rank {rank}, "
            f"not {given} of {stages[0].num_stages}"
        )
    for stage in stages:
        _let_meet(stage)
    runtime = _PipelineScheduleRuntime(list(stages), schedule.micro_batches, loss_fn, scale_grads=scale_grads)
    runtime._load_csv(schedule.path, format="compute_comms" if schedule.communicates else "compute_only")
    if interleave:
        interleave_pairs(runtime)
    return runtime


def _let_meet(stage: PipelineStage) -> None:
    """PyTorch before 2.13 first has neighbours send to each other, also those that are on one rank, which gloo refuses."""
    sends = stage._get_init_p2p_neighbors_ops

    def to_others() -> list[dist.P2POp]:
        return [op for op in sends() if op.group_peer != stage.group_rank]

    stage._get_init_p2p_neighbors_ops = to_others  # type: ignore[method-assign]
