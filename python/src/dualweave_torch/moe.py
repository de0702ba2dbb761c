"""Dispatch and combine of a mixture of experts over the ranks of a process group: exchanges of rows that autograd knows, in two parts.

An exchange is started where its rows are ready, and waited for where they are needed. It runs on the process group's own stream (NCCL) or
threads (gloo), after what the current stream had to do when its rows were ready; the current stream waits for it. What is between the
two runs beside it. In the backward the second part starts the exchange of the gradients, and the first waits for it.

In a pair (`run_pair`) the other half has a turn before each wait, and before a dispatch starts: how many rows a rank receives is a number
that the host waits for, and the GPU has the other half's experts to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from .pair import hand_over, note


@cache
def _start_stream(device: torch.device) -> torch.cuda.Stream:
    """Exchanges start from it: what the current stream has been given since their rows were ready does not hold them up."""
    return torch.cuda.Stream(device)


def _now(rows: torch.Tensor) -> torch.cuda.Event | None:
    """When what the current stream has to do for these rows is done; None on CPUs, where it is."""
    if not rows.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(rows.device))
    return event


class _Flight:
    """Rows on their way. Holds what is read and what is written until the current stream waits for it: their memory is not given to
    others before. ``rows`` are contiguous, and there at ``ready``.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        group: dist.ProcessGroup | None,
        ready: torch.cuda.Event | None,
    ) -> None:
        self.rows, self.work = rows, None
        # All ranks are this one: nothing moves.
        if group is None:
            self.arrived = rows.detach()
            return
        start = _start_stream(rows.device) if ready is not None else None
        with torch.cuda.stream(start):
            if start is not None and ready is not None:
                start.wait_event(ready)
            # Of this stream's memory: that of the current one may be in use by what it has been given since.
            self.arrived = rows.new_empty((sum(receive), *rows.shape[1:]))
            self.work = dist.all_to_all_single(self.arrived, rows, list(receive), list(send), group=group, async_op=True)

    def wait(self) -> torch.Tensor:
        if self.work is not None:
            self.work.wait()
            if self.arrived.is_cuda:
                self.arrived.record_stream(torch.cuda.current_stream(self.arrived.device))
        return self.arrived


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, exchange: Exchange, ready: torch.cuda.Event | None) -> torch.Tensor:
        ctx.exchange = exchange
        note("start", exchange.label, in_backward=False)
        exchange.there = _Flight(rows, exchange.send, exchange.receive, exchange.group, ready)
        # Has the shape, and nothing in it: what arrives is not to be touched before the second part.
        there = exchange.there.arrived
        return rows.new_empty((1,) * there.dim()).expand(there.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exchange: Exchange = ctx.exchange
        flight, exchange.back = exchange.back, None
        assert flight is not None, "the second part's backward runs first"
        hand_over(in_backward=True)
        note("wait", exchange.label, in_backward=True)
        return flight.wait(), None, None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, in_flight: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        flight, exchange.there = exchange.there, None
        assert flight is not None, "an exchange is finished once"
        hand_over(in_backward=False)
        note("wait", exchange.label, in_backward=False)
        return flight.wait()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exchange: Exchange = ctx.exchange
        (gradient,) = grad_outputs
        rows = gradient.contiguous()
        ready = _now(rows)
        if exchange.turn_first:
            note("ready", exchange.label, in_backward=True)
            hand_over(in_backward=True)
        note("start", exchange.label, in_backward=True)
        exchange.back = _Flight(rows, exchange.receive, exchange.send, exchange.group, ready)
        # Of the right shape. Where the gradients arrive only the first part knows.
        return gradient, None


class Exchange:
    """Rows that are sent to the ranks of a group: ``send[r]`` of them to rank r, in their order, and ``receive[r]`` from it.

    Starts it. ``send`` and ``receive`` must fit those of the other ranks. Without a group this rank is the only one, and nothing moves.
    ``ready`` is when the rows are there, if that is before now on the current stream. With ``turn_first`` the backward gives the other
    half of a pair a turn before it starts, as the caller has done.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        group: dist.ProcessGroup | None = None,
        *,
        label: str = "exchange",
        ready: torch.cuda.Event | None = None,
        turn_first: bool = False,
    ) -> None:
        ranks = 1 if group is None else group.size()
        if not len(send) == len(receive) == ranks or sum(send) != rows.shape[0]:
            raise ValueError(f"{ranks} ranks and {rows.shape[0]} rows, but {list(send)} to send and {list(receive)} to receive")
        self.send, self.receive, self.group, self.label = tuple(send), tuple(receive), group, label
        self.turn_first = turn_first
        self.there: _Flight | None = None
        self.back: _Flight | None = None
        if ready is None or not rows.is_contiguous():
            rows = rows.contiguous()
            ready = _now(rows)
        self._in_flight: torch.Tensor | None = _Start.apply(rows, self, ready)  # type: ignore[no-untyped-call]

    def finish(self) -> torch.Tensor:
        """The rows that have arrived: by rank, each in its order. In a pair the other half has a turn before they are waited for."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            raise RuntimeError("an exchange is finished once")
        rows: torch.Tensor = _Finish.apply(in_flight, self)  # type: ignore[no-untyped-call]
        return rows


class _Copies(torch.autograd.Function):
    """A token's row for each of its ``copies``, in another order: ``inverse`` of a copy is where it is."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, copies: int, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.copies = copies
        ctx.save_for_backward(inverse)
        return tokens.index_select(0, order // copies if copies > 1 else order)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Reads where autograd would add to one row from several: the same bits every time.
        (inverse,) = ctx.saved_tensors
        rows = grad_outputs[0].index_select(0, inverse)
        return rows.unflatten(0, (-1, ctx.copies)).sum(1) if ctx.copies > 1 else rows, None, None, None


def _inverse(order: torch.Tensor) -> torch.Tensor:
    """Of a permutation."""
    places = torch.arange(order.numel(), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places)


@dataclass
class _Counts:
    """Copies by rank and then by expert of the rank: those that are sent, and those that arrive. On their way to the host."""

    numbers: torch.Tensor
    there: torch.cuda.Event | None

    def get(self) -> tuple[list[list[int]], list[list[int]]]:
        if self.there is not None:
            self.there.synchronize()
        sent, arriving = self.numbers.tolist()
        return sent, arriving


class Routes:
    """Where the tokens of a micro-batch go and come back from. Each rank of a group has as many experts, in the order of the ranks.

    Of a layer's forward, in this order: `dispatch` and its ``finish``, `by_expert`, the experts, `by_rank`, `combine` and its ``finish``,
    `weigh`.
    """

    def __init__(self, experts: torch.Tensor, count: int, group: dist.ProcessGroup | None = None) -> None:
        """Of chosen experts, [tokens, k], among ``count``. The ranks tell each other how many copies come.

        ``group`` is None for all experts on this rank.
        """
        self.group, self.chosen = group, experts.shape[1]
        self._ranks = 1 if group is None else group.size()
        if count % self._ranks:
            raise ValueError(f"{count} experts on {self._ranks} ranks")
        self._local = count // self._ranks
        by_expert, self._order = experts.flatten().sort(stable=True)
        self._inverse = _inverse(self._order)
        ends = torch.searchsorted(by_expert, torch.arange(count, device=experts.device), right=True)
        sent = ends.diff(prepend=ends.new_zeros(1)).view(self._ranks, self._local)
        self._arriving = sent
        if group is not None:
            self._arriving = torch.empty_like(sent)
            dist.all_to_all_single(self._arriving, sent, group=group)
        numbers = torch.stack((sent, self._arriving)).to("cpu", non_blocking=True)
        self._counts = _Counts(numbers, _now(sent))
        # Known when the rows are sent: by rank, and of those that arrive by expert.
        self._send: tuple[int, ...] = ()
        self._receive: tuple[int, ...] = ()
        self._of_experts: tuple[int, ...] = ()
        self._regroup: tuple[torch.Tensor, torch.Tensor] | None = None

    def dispatch(self, tokens: torch.Tensor) -> Exchange:
        """Starts to send tokens, [tokens, width], to their experts. The host waits for how many; in a pair after a turn of the other half."""
        rows: torch.Tensor = _Copies.apply(tokens, self.chosen, self._order, self._inverse)  # type: ignore[no-untyped-call]
        ready = _now(rows)
        note("ready", "dispatch", in_backward=False)
        hand_over(in_backward=False)
        sent, arriving = self._counts.get()
        self._send, self._receive = tuple(map(sum, sent)), tuple(map(sum, arriving))
        self._of_experts = tuple(map(sum, zip(*arriving, strict=True)))
        return Exchange(rows, self._send, self._receive, self.group, label="dispatch", ready=ready, turn_first=True)

    @property
    def of_experts(self) -> tuple[int, ...]:
        """Copies that arrive for each expert of this rank, after `dispatch`."""
        return self._of_experts

    @property
    def ends(self) -> torch.Tensor:
        """Where an expert's rows end in `by_expert`, on the device, for grouped products: int32."""
        return self._arriving.sum(0).cumsum(0).int()

    def by_expert(self, rows: torch.Tensor) -> torch.Tensor:
        """What has arrived by dispatch, by expert of this rank, as many rows of each as `of_experts` says."""
        if self._ranks == 1:
            return rows
        experts = torch.arange(self._local, device=rows.device).repeat(self._ranks)
        of_rows = experts.repeat_interleave(self._arriving.flatten(), output_size=rows.shape[0])
        order = of_rows.argsort(stable=True)
        self._regroup = order, _inverse(order)
        result: torch.Tensor = _Copies.apply(rows, 1, *self._regroup)  # type: ignore[no-untyped-call]
        return result

    def by_rank(self, rows: torch.Tensor) -> torch.Tensor:
        """The order of dispatch once more: undoes `by_expert`."""
        if self._regroup is None:
            return rows
        order, inverse = self._regroup
        result: torch.Tensor = _Copies.apply(rows, 1, inverse, order)  # type: ignore[no-untyped-call]
        return result

    def combine(self, rows: torch.Tensor) -> Exchange:
        """Starts to send what the experts have made back, in the order of `by_rank`."""
        return Exchange(rows, self._receive, self._send, self.group, label="combine")

    def weigh(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """For each token the sum of what its experts have made, [tokens, width], by weights, [tokens, k]. ``rows`` are those of combine."""
        copies: torch.Tensor = _Copies.apply(rows, 1, self._inverse, self._order)  # type: ignore[no-untyped-call]
        return (copies.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(1)
