"""A schedule file in torchtitan's own schedule builder, on CPUs: `python torchtitan_csv.py FILE NAME`, a file for V-shaped stages or others, and
the name that torchtitan takes the placement from. Compares every gradient with those of the model without a pipeline. Wants torchtitan
0.3.0 and what it imports; not in CI."""

import os
import socket
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import pipeline_parallel as titan

from dualweave_torch import ScheduleFile, interleave_pairs

WIDTH, LAYERS, WORDS, MOST = 16, 6, 32, 1e-6


class Model(nn.Module):
    """With the names that torchtitan cuts models at: what a stage has not is None or left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tok_embeddings = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleDict({str(n): nn.Linear(WIDTH, WIDTH) for n in range(LAYERS)})
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS)

    def forward(self, x):
        x = x if self.tok_embeddings is None else self.tok_embeddings(x)
        for layer in self.layers.values():
            x = x + torch.tanh(layer(x))
        x = x if self.norm is None else self.norm(x)
        return x if self.lm_head is None else self.lm_head(x)


def loss(output, target):
    """And metrics, as torchtitan's losses give."""
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten()), {}


def work(rank: int, file: ScheduleFile, name: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank))
    ranks = len(file.stages_by_rank)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    config = ParallelismConfig(pipeline_parallel_degree=ranks, pipeline_parallel_schedule=name, pipeline_parallel_schedule_csv=file.path)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("pp",))
    names = titan._generate_llm_fqn_per_model_part(file.stages, LAYERS)
    stages, _ = titan._pipeline_module_split(Model(), mesh, name, torch.device("cpu"), names)
    print(f"rank {rank}: {name} places stages {[stage.stage_index for stage in stages]}", flush=True)
    schedule = titan._build_pipeline_schedule(parallelism=config, local_batch_size=file.micro_batches, stages=stages, loss_fn=loss)
    torch.manual_seed(4)
    tokens = torch.randint(WORDS, (file.micro_batches, 5))
    whole = Model()
    for x in tokens.chunk(file.micro_batches):
        loss(whole(x), x)[0].backward()
    expected = dict(whole.named_parameters())
    first, last = (any(getattr(stage, end) for stage in stages) for end in ("is_first", "is_last"))
    for interleaved in (False, True):
        interleave_pairs(schedule, interleaved)
        for stage in stages:
            stage.submod.zero_grad()
        losses: list[torch.Tensor] = []
        schedule.step(*((tokens,) if first else ()), **({"target": tokens, "losses": losses} if last else {}))
        worst = 0.0
        for stage in stages:
            for parameter_name, parameter in stage.submod.named_parameters():
                reference = expected[parameter_name].grad
                worst = max(worst, float((parameter.grad - reference).norm() / reference.norm()))
        print(f"rank {rank}: gradients off by {worst:.1e} at most", flush=True)
        assert worst <= MOST
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = ScheduleFile.read(sys.argv[1])
    mp.start_processes(work, (file, sys.argv[2], port), nprocs=len(file.stages_by_rank), start_method="fork")
