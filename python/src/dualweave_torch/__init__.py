"""Runs schedules of dualweave in ``torch.distributed.pipelining``."""

from .schedule import ScheduleFile, load

__all__ = ["ScheduleFile", "load"]
