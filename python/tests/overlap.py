"""Pairs with their forward and backward in turns, on CPUs, experts over two processes: `python overlap.py FILE...`, schedules of one
pipeline rank or more, with pairs; with `--cuda` on one GPU that the processes share, schedules of one pipeline rank. For each

- every gradient and loss is that of PyTorch's own order of a pair, bit for bit, also where activations are computed once more;
- every gradient is that of the whole model in one process, without a pipeline and with all experts there;
- dispatch, combine and what is between them come in the order that `dualweave_torch.overlap` tells.

An error in either half ends both, and the process, with that error. Exit code 1 if something does not hold."""

import functools
import inspect
import itertools
import logging
import os
import socket
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti
from torch.utils.checkpoint import checkpoint

from dualweave_torch import PairEnded, ScheduleFile, interleave_pairs, load, point, record_points, run_pair

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/pytorch"))
from model import Shape, Stage, loss_fn  # noqa: E402

EP, SEQUENCES, LENGTH, MOST = 2, 2, 6, 1e-12
SHAPE = Shape()
CUDA = "--cuda" in sys.argv
DEVICE = torch.device("cuda" if CUDA else "cpu")


def data(ep_rank: int, micro_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 + ep_rank)
    shape = (SEQUENCES * micro_batches, LENGTH)
    tokens = torch.randint(SHAPE.vocabulary, shape, generator=generator)
    return tokens.to(DEVICE), ((3 * tokens + 1) % SHAPE.vocabulary).to(DEVICE)


class Again(torch.nn.Module):
    """Computes activations once more. Dropout, so that random numbers matter."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: torch.nn.functional.dropout(self.layer(x), 0.1), x, use_reentrant=False)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("no gradient today")


def one_pair(layers: int) -> list[tuple[str, str, str]]:
    """Of a forward and a backward of stages with so many layers: what each does in its turns, one after the other."""
    turns: dict[str, list[list[tuple[str, str]]]] = {"F": [[]], "B": [[]]}
    for _ in range(layers):
        turns["F"][-1].append(("ready", "dispatch"))
        turns["F"] += [[("start", "dispatch")], [("wait", "dispatch"), ("start", "combine")], [("wait", "combine")]]
        turns["B"][-1].append(("start", "combine"))
        turns["B"] += [[("wait", "combine"), ("ready", "dispatch")], [("start", "dispatch")], [("wait", "dispatch")]]
    both = zip(turns["B"], turns["F"], strict=True)
    return [(half, *step) for pair in both for half, turn in zip("BF", pair, strict=True) for step in turn]


def check(ok: bool, what: str) -> None:
    if not ok:
        raise AssertionError(what)


def scaled_loss(output: torch.Tensor, target: torch.Tensor, scale: int = 1) -> torch.Tensor:
    return scale * loss_fn(output, target)


def run(file: ScheduleFile, rank: int, pp_group, ep_group, *, interleave: bool, again: bool = False, **more):
    """Gradients by stage and name, losses, and the points of a step with arguments ``more``."""
    modules, own = {}, file.stages_by_rank[pp_group.rank()]
    for stage in own:
        modules[stage] = Stage(SHAPE, stage, file.stages, ep_group).to(DEVICE, torch.double)
        if again:
            modules[stage].layers = torch.nn.ModuleList(map(Again, modules[stage].layers))
    stages = [PipelineStage(modules[s], s, file.stages, DEVICE, group=pp_group) for s in own]
    schedule = load(file, stages, scaled_loss, scale_grads=False)
    tokens, targets = data(ep_group.rank(), file.micro_batches)
    losses: list[torch.Tensor] = []
    arguments = (tokens,) if 0 in own else ()
    last = {"target": targets, "losses": losses} if file.stages - 1 in own else {}
    # The first step also finds out shapes, with memory as it is: a second one after it, with the same random numbers.
    for _ in range(2):
        for module in modules.values():
            module.zero_grad()
        torch.manual_seed(5 + rank)
        interleave_pairs(schedule, interleave)
        with record_points() as record:
            schedule.step(*arguments, **last, **more)
    kept = sum(len(stage.output_chunks) for stage in stages if stage.is_last)
    check(kept == (file.micro_batches if last and more.get("return_outputs", True) else 0), f"{kept} outputs")
    gradients = {(s, name): p.grad for s, m in modules.items() for name, p in m.named_parameters()}
    return gradients, losses, record


def check_order(file: ScheduleFile, pp_rank: int, record) -> int:
    """Of all pairs of a rank. How many there are."""
    with open(file.path, encoding="ascii") as text:
        pairs = text.read().splitlines()[pp_rank].count("OVERLAP_F_B")
    of_pairs = [(half.value, what, label) for half, what, label in record if half is not None]
    check(pairs > 0 and of_pairs == one_pair(SHAPE.layers // file.stages) * pairs, f"{file.path}: {of_pairs}")
    return pairs


def without_pipeline(file: ScheduleFile, ep_rank: int):
    whole = [Stage(SHAPE, s, file.stages, None).to(DEVICE, torch.double) for s in range(file.stages)]
    tokens, targets = data(ep_rank, file.micro_batches)
    for x, target in zip(tokens.chunk(file.micro_batches), targets.chunk(file.micro_batches), strict=True):
        loss_fn(torch.nn.Sequential(*whole)(x), target).backward()
    return {(s, name): p.grad for s, m in enumerate(whole) for name, p in m.named_parameters()}


def join(rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(CUDA, warn_only=True)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUBLAS_WORKSPACE_CONFIG=":4096:8")
    # NCCL wants a GPU for each process.
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def work(rank: int, files: list[ScheduleFile], port: int) -> None:
    ranks = len(files[0].stages_by_rank)
    join(rank, ranks * EP, port)
    pp_groups = [dist.new_group(range(e, ranks * EP, EP)) for e in range(EP)]
    ep_groups = [dist.new_group(range(p * EP, (p + 1) * EP)) for p in range(ranks)]
    pp_rank, ep_rank = divmod(rank, EP)
    groups = pp_groups[ep_rank], ep_groups[pp_rank]
    for file in files:
        for again in (False, True):
            serial, serial_losses, alone = run(file, rank, *groups, interleave=False, again=again)
            turns, turns_losses, record = run(file, rank, *groups, interleave=True, again=again)
            check(serial.keys() == turns.keys(), "other parameters")
            check(all(torch.equal(serial[name], turns[name]) for name in serial), f"{file.path}: other gradients")
            check([loss.item() for loss in serial_losses] == [loss.item() for loss in turns_losses], f"{file.path}: other losses")
            check(not any(half for half, _, _ in alone), "turns without pairs")
            check(Counter(point[1:] for point in alone) == Counter(point[1:] for point in record), "other exchanges")
            if again:
                continue
            if "loss_kwargs" in inspect.signature(PipelineScheduleMulti.step).parameters:
                twice, _, _ = run(file, rank, *groups, interleave=True, return_outputs=False, loss_kwargs={"scale": 2})
                check(all(torch.equal(2 * turns[name], twice[name]) for name in turns), "arguments of a step are lost")
            pairs = check_order(file, pp_rank, record)
            own, other = without_pipeline(file, ep_rank), without_pipeline(file, 1 - ep_rank)
            worst = 0.0
            for (stage, name), gradient in turns.items():
                expected = own[stage, name]
                if ".experts." in name:
                    # Of this rank's experts, tokens of both ranks.
                    expected = (expected + other[stage, name]).chunk(EP)[ep_rank]
                worst = max(worst, float((gradient - expected).norm() / expected.norm()))
            check(worst <= MOST, f"{file.path}: gradients off by {worst:.1e}")
            print(f"{file.path}: rank {rank}: {pairs} pairs, gradients off by {worst:.1e} at most", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def fail(rank: int, file: ScheduleFile, in_backward: bool, port: int) -> None:
    """One of the ranks fails in the middle of a pair."""
    join(rank, EP, port)
    stages = [Stage(SHAPE, s, file.stages, dist.group.WORLD).to(DEVICE) for s in file.stages_by_rank[0]]
    calls = itertools.count()

    def forward(module, inputs, output):
        # In the middle of a stage, and of a step: what finds out shapes has one forward of each layer.
        if rank == 1 and next(calls) == 3:
            if in_backward:
                return Failing.apply(output)
            raise ArithmeticError("no activation today")
        return output

    stages[1].layers[0].register_forward_hook(forward)
    # PyTorch tells the whole schedule.
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)
    alone = [dist.new_group([r]) for r in range(EP)][rank]
    parts = [PipelineStage(m, s, file.stages, DEVICE, group=alone) for s, m in enumerate(stages)]
    tokens, targets = data(rank, file.micro_batches)
    load(file, parts, loss_fn, interleave=True).step(tokens, target=targets)


def spawn(function, processes: int, *arguments) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PyTorch is imported once. Nothing of it has run in this process before.
    mp.start_processes(function, (*arguments, port), nprocs=processes, start_method="fork")


def chain(points: int, told: list[str], name: str, fails: bool = False) -> torch.Tensor:
    """Its backward, and its forward too, tells where it is and hands over, so many times; then the backward fails or not."""

    def step(values: torch.Tensor, number: int) -> torch.Tensor:
        values.register_hook(lambda _: told.append(f"{name}{number}"))
        return values

    y = torch.ones(1, requires_grad=True)
    y = step(Failing.apply(y) if fails else y * 1, points)
    for number in reversed(range(points)):
        y = step(point(y), number)
    return y


def check_turns() -> None:
    """Of two halves alone."""
    told: list[str] = []

    def forward(points: int, error: Exception | None = None) -> None:
        x = torch.ones(1)
        for number in range(points):
            told.append(f"F{number}")
            x = point(x)
        told.append(f"F{points}")
        if error:
            raise error

    for points, expected in ((1, "B0 F0 B1 F1 B2 B3"), (3, "B0 F0 B1 F1 B2 F2 B3 F3"), (5, "B0 F0 B1 F1 B2 F2 B3 F3 F4 F5")):
        y = chain(3, told, "B")
        told.clear()
        run_pair(functools.partial(forward, points), y.backward)
        check(told == expected.split(), f"{told} is not {expected}")

    ended: list[bool] = []

    def watched(half):
        try:
            half()
        except PairEnded:
            ended.append(True)
            raise

    for own, other in itertools.product((0, 3), repeat=2):
        for in_backward in (False, True):
            ended.clear()
            y = chain(own if in_backward else other, told, "B", fails=in_backward)
            halves = [functools.partial(forward, own, KeyError("mine")), functools.partial(watched, y.backward)]
            if in_backward:
                halves = [functools.partial(watched, functools.partial(forward, other)), y.backward]
            try:
                run_pair(*halves)
            except (KeyError, ArithmeticError) as error:
                check(isinstance(error, ArithmeticError if in_backward else KeyError), repr(error))
            else:
                raise AssertionError("no error")
            # The backward begins. One that fails at once leaves a forward that has not; a half without points is over before.
            within = other == 3 and (own == 3) == in_backward
            check(ended == [True] * within, f"{own} and {other} points: {ended}")
    try:
        run_pair(lambda: run_pair(int, int), int)
    except RuntimeError as error:
        check("inside" in str(error), repr(error))
    else:
        raise AssertionError("a pair inside a pair")
    run_pair(int, int)


def main() -> int:
    files = [ScheduleFile.read(path) for path in sys.argv[1:] if path != "--cuda"]
    for ranks, same in itertools.groupby(sorted(files, key=lambda f: len(f.stages_by_rank)), lambda f: len(f.stages_by_rank)):
        spawn(work, ranks * EP, list(same))
    (one, *_) = [file for file in files if len(file.stages_by_rank) == 1]
    for in_backward, said in ((True, "no gradient today"), (False, "no activation today")):
        try:
            spawn(fail, EP, one, in_backward)
        except mp.ProcessRaisedException as error:
            check("ArithmeticError" in str(error) and said in str(error), str(error))
            print(f"an error in the {'backward' if in_backward else 'forward'} of a pair ends the processes: {said}", flush=True)
        else:
            raise AssertionError("no error")
    check_turns()
    return 0


if __name__ == "__main__":
    sys.exit(main())
