"""Trains a small mixture of experts with a schedule file: `torchrun --nproc-per-node N train.py --schedule FILE --ep EP`.

N is the file's pipeline ranks times EP. With `--check` steps with interleaved pairs are compared with those in which PyTorch runs them its
own way; with `--pairs both` the two take turns, step by step, and their times are compared; `--profile` tells how much of the exchanges ran
beside computation on a GPU.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from model import Shape, Stage, loss_fn
from torch.distributed.pipelining import PipelineStage
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualweave_torch import ScheduleFile, interleave_pairs, load

TYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", required=True, metavar="FILE", help="of `dualweave export --format torch-csv`")
    parser.add_argument("--ep", type=int, default=1, help="ranks that share the experts of a stage")
    parser.add_argument("--pairs", choices=("interleaved", "serial", "both"), default="interleaved")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="compare gradients of N steps; exit code 1 if they differ")
    parser.add_argument("--profile", action="store_true", help="of one step of each way, on a GPU with NCCL")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="first steps, of each way, that are not timed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=("gloo", "nccl"), help="nccl on GPUs; gloo lets ranks share one")
    parser.add_argument("--dtype", choices=TYPES, help="bf16 on GPUs, f32 on CPUs")
    parser.add_argument("--sequences", type=int, default=2, help="of a micro-batch, on each rank of the experts' group")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sequence")
    parser.add_argument("--rate", type=float, default=0.1, help="of SGD")
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="of the model")
    return parser.parse_args()


def groups(pp: int, ep: int) -> tuple[Any, Any]:
    """This rank's group for the pipeline, and the one that shares its experts: neighbours."""
    mine: list[Any] = [None, None]
    options = None
    if dist.get_backend() == "nccl":
        # An exchange starts while kernels of the other half fill the GPU: its blocks come before theirs.
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    for e in range(ep):
        ranks = list(range(e, pp * ep, ep))
        group = dist.new_group(ranks)
        mine[0] = group if dist.get_rank() in ranks else mine[0]
    for p in range(pp):
        ranks = list(range(p * ep, (p + 1) * ep))
        group = dist.new_group(ranks, pg_options=options)
        mine[1] = group if dist.get_rank() in ranks else mine[1]
    return mine[0], mine[1]


class Training:
    """A rank's stages, their schedule, and its data: a token is followed by one that it decides."""

    def __init__(self, args: argparse.Namespace, file: ScheduleFile, device: torch.device) -> None:
        self.pp_group, self.ep_group = groups(len(file.stages_by_rank), args.ep)
        self.shape = Shape(**{name: getattr(args, name) for name in vars(Shape())})
        own = file.stages_by_rank[self.pp_group.rank()]
        self.modules = [Stage(self.shape, s, file.stages, self.ep_group) for s in own]
        stages = []
        for stage, module in zip(own, self.modules, strict=True):
            module.to(device, TYPES[args.dtype])
            stages.append(PipelineStage(module, stage, file.stages, device, group=self.pp_group))
        self.schedule = load(file, stages, loss_fn, scale_grads=True)
        self.first, self.last = 0 in own, file.stages - 1 in own
        self.batch = (args.sequences * file.micro_batches, args.length)
        self.device, self.rate = device, args.rate

    def data(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + self.ep_group.rank())
        tokens = torch.randint(self.shape.vocabulary, self.batch, generator=generator)
        return tokens.to(self.device), ((3 * tokens + 1) % self.shape.vocabulary).to(self.device)

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Forward and backward. The mean loss, on the last rank of the pipeline."""
        for module in self.modules:
            module.zero_grad()
        losses: list[torch.Tensor] = []
        last: dict[str, Any] = {"target": targets, "losses": losses} if self.last else {}
        self.schedule.step(*((tokens,) if self.first else ()), **last, return_outputs=False)
        return torch.stack([loss.detach() for loss in losses]).mean() if losses else None

    def update(self) -> None:
        """Gradients of the mean over the ranks, and SGD. Experts have those of all ranks: their tokens came from there."""
        ranks = self.ep_group.size()
        for module in self.modules:
            experts = set(module.expert_parameters())
            for parameter in module.parameters():
                assert parameter.grad is not None
                if parameter not in experts and ranks > 1:
                    dist.all_reduce(parameter.grad, group=self.ep_group)
                with torch.no_grad():
                    parameter.sub_(parameter.grad, alpha=self.rate / ranks)

    def difference(self, steps: int) -> tuple[float, int, int]:
        """Of gradients with pairs interleaved to those of PyTorch's own order, over some steps: by their norm, at most, on any rank; of how
        many parameters they are not the same bits; and of how many they are not when PyTorch's own order is run twice."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        worst, other, own = 0.0, 0, 0
        for step in range(steps):
            tokens, targets = self.data(step)
            found = []
            for interleaved in (False, False, True):
                interleave_pairs(self.schedule, interleaved)
                # The attention of cuDNN adds in any order.
                with sdpa_kernel(SDPBackend.MATH):
                    self.step(tokens, targets)
                parameters = [p for module in self.modules for p in module.parameters()]
                found.append([p.grad.double() for p in parameters if p.grad is not None])
                assert len(found[-1]) == len(parameters)
            first, serial, turns = found
            worst = max([worst, *(float((a - b).norm() / b.norm()) for a, b in zip(turns, serial, strict=True))])
            other += sum(not torch.equal(a, b) for a, b in zip(turns, serial, strict=True))
            own += sum(not torch.equal(a, b) for a, b in zip(first, serial, strict=True))
            # What is no number is no small difference.
            if not all(bool(gradient.isfinite().all()) for gradient in turns):
                worst = float("inf")
        torch.use_deterministic_algorithms(False)
        result = torch.tensor([worst, other, own], dtype=torch.double, device=self.device)
        dist.all_reduce(result, op=dist.ReduceOp.MAX)
        return float(result[0]), int(result[1]), int(result[2])

    def profile(self) -> str:
        """Of a step: the time of exchanges on this GPU, how much of it other kernels ran beside, and for how long there were none."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            self.step(*self.data(0))
            torch.cuda.synchronize(self.device)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            with open(file.name, encoding="utf-8") as text:
                events = json.load(text)["traceEvents"]
        spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for event in events:
            if event.get("cat") == "kernel":
                spans[event["name"].startswith("nccl")].append((event["ts"], event["ts"] + event["dur"]))
        exchanges, others = union(spans[True]), union(spans[False])
        busy = union(exchanges + others)
        both = length(exchanges) + length(others) - length(busy)
        idle = busy[-1][1] - busy[0][0] - length(busy) if busy else 0.0
        share = f"{100 * both / length(exchanges):.0f} %" if exchanges else "nothing"
        return (
            f"exchanges {1e-3 * length(exchanges):.2f} ms, {share} of it beside computation of {1e-3 * length(others):.2f} ms; "
            f"idle {1e-3 * idle:.2f} ms"
        )


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What they cover."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def length(spans: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def quartiles(times: list[float]) -> str:
    if len(times) < 2:
        return f"{1e3 * times[0]:.2f} ms"
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return f"{1e3 * middle:.2f} ms (quartiles {1e3 * low:.2f} to {1e3 * high:.2f}, {len(times)} steps)"


def main() -> int:
    args = arguments()
    if args.profile and args.device != "cuda":
        raise SystemExit("--profile is for GPUs")
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    file = ScheduleFile.read(args.schedule)
    # For `--check`: products of the same bits every time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group(args.backend or ("nccl" if device.type == "cuda" else "gloo"))
    expected = len(file.stages_by_rank) * args.ep
    if dist.get_world_size() != expected:
        raise SystemExit(f"{args.schedule} with --ep {args.ep} is for {expected} processes, not {dist.get_world_size()}")
    training = Training(args, file, device)
    # The first rank that has losses prints.
    reports = training.last and training.ep_group.rank() == 0
    say = print if reports else lambda *_, **__: None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    say(
        f"{where}, {dist.get_backend()}, PyTorch {torch.__version__}: {len(file.stages_by_rank)} pipeline ranks, EP {args.ep}, "
        f"{file.micro_batches} micro-batches of {args.sequences} x {args.length} tokens, {args.dtype}"
    )
    status = 0
    if args.check:
        worst, other, own = training.difference(args.check)
        same = "the same bits" if other == 0 else f"off by {worst:.1e} at most, {other} not the same bits ({own} if serial twice)"
        say(f"gradients of interleaved pairs and of serial ones, {args.check} steps: {same}", flush=True)
        status = int(worst > {"f64": 1e-12, "f32": 1e-5, "bf16": 2e-2}[args.dtype])
    ways = {"both": (False, True), "serial": (False,), "interleaved": (True,)}[args.pairs]
    times: dict[bool, list[float]] = {way: [] for way in ways}
    tokens_of_step = args.ep * training.batch[0] * training.batch[1]
    for step in range(args.steps + args.warm_up if args.steps else 0):
        tokens, targets = training.data(step)
        loss, took = None, 0.0
        for way in ways:
            interleave_pairs(training.schedule, way)
            synchronize(device)
            start = time.perf_counter()
            loss = training.step(tokens, targets)
            synchronize(device)
            took = time.perf_counter() - start
            if step >= args.warm_up:
                times[way].append(took)
        training.update()
        if loss is not None:
            say(f"step {step + 1}: loss {float(loss):.4f}, {tokens_of_step / took:.0f} tokens/s", flush=True)
    for way, taken in times.items():
        if taken:
            say(f"{'interleaved' if way else 'serial'} pairs: {quartiles(taken)}", flush=True)
    if args.pairs == "both" and args.steps:
        ratios = [serial / turns for serial, turns in zip(times[False], times[True], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        say(f"serial to interleaved: {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)
    for way in ways if args.profile else ():
        interleave_pairs(training.schedule, way)
        say(f"{'interleaved' if way else 'serial'} pairs: {training.profile()}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
