"""What PyTorch's schedule runtime does with a pair, ``(0F2;7B1)OVERLAP_F_B``: the forward and the backward interleaved.

PyTorch itself runs one after the other. Here they take turns (`run_pair`), at the dispatch and the combine of each layer that uses
`dualweave_torch.moe`, forward and backward. For layers with attention, then experts, this order comes of it, as in DeepSeek's DualPipe:

    ====================================  ============================================
    on the current stream                 beside it, on the stream of the group
    ====================================  ============================================
    B: head or loss                       nothing, before the first layer
    F: attention, router                  B: combine (gradients to the experts)
    B: experts, gradients of weights too  F: dispatch
    F: experts                            B: dispatch (gradients back to their tokens)
    B: attention of this layer            F: combine
    ====================================  ============================================

and again with the next layer of each. If one has no more layers the other goes on alone, and waits for its exchanges at once.

The host launches B's experts before F's dispatch, for which it waits until it knows how many rows there are; the dispatch itself waits for
its rows only.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.distributed.pipelining.schedules import (
    BACKWARD_INPUT,
    FORWARD,
    FULL_BACKWARD,
    OVERLAP_F_B,
    _Action,
    _PipelineContext,
    _PipelineScheduleRuntime,
    _wait_batch_p2p,
)

from .pair import run_pair


class _Overlap:
    """A function for pairs. What PyTorch does not hand to it, `interleave_pairs` sets for each step."""

    def __init__(self) -> None:
        self.loss_kwargs: dict[str, Any] | None = None
        self.return_outputs = True

    def __call__(self, action: _Action, ctx: _PipelineContext) -> None:
        schedule = ctx.schedule_ref
        if not isinstance(schedule, _PipelineScheduleRuntime):
            raise TypeError(f"pairs are run in a _PipelineScheduleRuntime, not in a {type(schedule).__name__}")
        if action.sub_actions is None or len(action.sub_actions) != 2:
            raise ValueError(f"{action} is not a pair")
        forward, backward = action.sub_actions
        if forward.computation_type != FORWARD or backward.computation_type not in (FULL_BACKWARD, BACKWARD_INPUT):
            raise ValueError(f"{action} is not a forward and a backward, in this order")
        stage, number = forward.stage_index, forward.microbatch_index
        if (stage, number) == (backward.stage_index, backward.microbatch_index):
            raise ValueError(f"{action}: the backward needs this forward")
        # What comes from other ranks is waited for by the caller's stream, which both halves use.
        _await(schedule, forward)
        _await(schedule, backward)
        run_pair(
            lambda: self._forward(schedule, forward, ctx),
            lambda: _backward(schedule, backward),
        )

    def _forward(self, schedule: _PipelineScheduleRuntime, action: _Action, ctx: _PipelineContext) -> None:
        stages = {stage.stage_index: stage for stage in schedule._stages}
        stage, number = stages[action.stage_index], _micro_batch(action)
        if ctx.arg_mbs is None or ctx.kwarg_mbs is None:
            raise ValueError(f"{action}: no inputs")
        schedule._assert_unsharded(stage)
        output = stage.forward_one_chunk(number, ctx.arg_mbs[number], ctx.kwarg_mbs[number], save_forward_output=self.return_outputs)
        # PyTorch before 2.13 has no arguments for the loss.
        more = () if self.loss_kwargs is None else (self.loss_kwargs,)
        schedule._maybe_compute_loss(stage, output, ctx.target_mbs, number, *more)
        if stage.stage_index + 1 in stages:
            stages[stage.stage_index + 1].set_local_fwd_input(output, number)


def _await(schedule: _PipelineScheduleRuntime, action: _Action) -> None:
    """Waits for what another rank sends for it. A neighbour on this rank hands it over itself."""
    stages = {stage.stage_index: stage for stage in schedule._stages}
    stage, key = stages[action.stage_index], (action.stage_index, _micro_batch(action))
    if action.computation_type == FORWARD:
        received, first, neighbour = schedule.fwd_recv_ops, stage.is_first, stage.stage_index - 1
    else:
        received, first, neighbour = schedule.bwd_recv_ops, stage.is_last, stage.stage_index + 1
    if first or neighbour in stages:
        return
    if key not in received:
        raise ValueError(f"{action} before what it reads is received")
    _wait_batch_p2p(received.pop(key))


def _backward(schedule: _PipelineScheduleRuntime, action: _Action) -> None:
    stages = {stage.stage_index: stage for stage in schedule._stages}
    stage, number = stages[action.stage_index], _micro_batch(action)
    schedule._assert_unsharded(stage)
    loss = schedule._maybe_get_loss(stage, number)
    full = action.computation_type == FULL_BACKWARD
    if full:
        # A backward in two parts is counted at its second.
        schedule.backward_counter[stage.stage_index] += 1
    last = full and schedule.backward_counter[stage.stage_index] == schedule._n_microbatches
    stage.backward_one_chunk(number, loss=loss, full_backward=full, last_backward=last)
    if stage.stage_index - 1 in stages:
        stages[stage.stage_index - 1].set_local_bwd_input(stage.get_local_bwd_output(number), number)


def _micro_batch(action: _Action) -> int:
    if action.microbatch_index is None:
        raise ValueError(f"{action} has no micro-batch")
    return int(action.microbatch_index)


def overlap_f_b(action: _Action, ctx: _PipelineContext) -> None:
    """For ``schedule.register_custom_function(OVERLAP_F_B, overlap_f_b)``. Pairs get no ``loss_kwargs``, and outputs are kept also for
    ``return_outputs=False``: PyTorch does not tell a function of them. `interleave_pairs` does.

    Raises ``ValueError`` for what is not a pair. An error in one half ends both, and is raised.
    """
    _Overlap()(action, ctx)


def interleave_pairs(schedule: _PipelineScheduleRuntime, interleaved: bool = True) -> None:
    """Has pairs of this schedule interleaved, or no longer."""
    vars(schedule).pop("_step_microbatches", None)
    schedule._comp_type_to_function_map.pop(OVERLAP_F_B, None)
    if not interleaved:
        return
    overlap = _Overlap()
    parameters = inspect.signature(schedule._step_microbatches)

    # PyTorch tells the step of these, and not the function.
    def step_microbatches(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs).arguments
        overlap.loss_kwargs = given.get("loss_kwargs")
        overlap.return_outputs = given.get("return_outputs", True)
        return type(schedule)._step_microbatches(schedule, *args, **kwargs)

    schedule._step_microbatches = step_microbatches  # type: ignore[method-assign]
    schedule.register_custom_function(OVERLAP_F_B, overlap)
