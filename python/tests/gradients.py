"""Runs schedule files in PyTorch on CPUs, a process for each rank, and compares every gradient with those of the same model without
a pipeline: ``python gradients.py FILE...``. Exit code 1 if one is more than 1e-6 of its norm away."""

import os
import socket
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage

from dualweave_torch import ScheduleFile, load

WIDTH, SEQUENCES, MOST = 16, 2, 1e-6


def layer(stage: int) -> nn.Module:
    torch.manual_seed(100 + stage)
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)).double()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).mean()


def data(micro_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    shape = (SEQUENCES * micro_batches, WIDTH)
    return torch.randn(shape, dtype=torch.double), torch.randn(shape, dtype=torch.double)


def work(rank: int, files: list[ScheduleFile], port: int, found) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(files[0].stages_by_rank))
    for file in files:
        own = file.stages_by_rank[rank]
        stages = [PipelineStage(layer(s), s, file.stages, torch.device("cpu")) for s in own]
        inputs, targets = data(file.micro_batches)
        losses: list[torch.Tensor] = []
        arguments = (inputs,) if 0 in own else ()
        last = {"target": targets, "losses": losses} if file.stages - 1 in own else {}
        load(file, stages, loss_fn, scale_grads=False).step(*arguments, **last)

        reference = [layer(s) for s in range(file.stages)]
        for x, target in zip(inputs.chunk(file.micro_batches), targets.chunk(file.micro_batches), strict=True):
            loss_fn(nn.Sequential(*reference)(x), target).backward()
        worst = 0.0
        for stage in stages:
            for ours, theirs in zip(stage.submod.parameters(), reference[stage.stage_index].parameters(), strict=True):
                difference = float("inf") if ours.grad is None else (ours.grad - theirs.grad).norm() / theirs.grad.norm()
                worst = max(worst, float(difference))
        found.put((file.path, worst))
        dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    files = [ScheduleFile.read(path) for path in sys.argv[1:]]
    failed = 0
    # One group of processes for each number of ranks.
    for ranks in sorted({len(file.stages_by_rank) for file in files}):
        same = [file for file in files if len(file.stages_by_rank) == ranks]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = mp.get_context("spawn").SimpleQueue()
        mp.spawn(work, (same, port, found), nprocs=ranks)
        worst = {file.path: 0.0 for file in same}
        for _ in range(ranks * len(same)):
            path, difference = found.get()
            worst[path] = max(worst[path], difference)
        for path, difference in worst.items():
            good = difference <= MOST
            failed += not good
            print(f"{path}: gradients off by {difference:.1e} at most{'' if good else ': TOO MUCH'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
