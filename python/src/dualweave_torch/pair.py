"""Two halves of a pair take turns: the forward of one micro-batch and the backward of another.

Only one of them runs at any time, so what they launch, exchanges between ranks too, has one order, the same on every rank and in every
run. A half gives its turn away where it would wait for an exchange: what the other then launches runs beside that exchange.

The forward runs in the thread that starts the pair. The backward starts in a second one; autograd runs the nodes of a GPU in threads of
its own. So "the backward's" is every thread but the forward's.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from enum import Enum

import torch


class Half(Enum):
    """Of a pair."""

    FORWARD = "F"
    BACKWARD = "B"

    @property
    def other(self) -> Half:
        return Half.BACKWARD if self is Half.FORWARD else Half.FORWARD


class PairEnded(RuntimeError):
    """Ends a half because the other one has failed. What `run_pair` raises is the other's error."""


#: What happened: the half, or None outside of pairs; "ready" (and a turn of the other half), "start" or "wait"; of which exchange.
Record = list[tuple[Half | None, str, str]]

_records: list[Record] = []
_current: _Pair | None = None


class _Pair:
    def __init__(self) -> None:
        self.forward_thread = threading.get_ident()
        self._turns: dict[Half, queue.SimpleQueue[None]] = {half: queue.SimpleQueue() for half in Half}
        self._over: set[Half] = set()
        self._error: BaseException | None = None

    def hand_over(self, half: Half) -> None:
        """The other half runs until it hands over or is over."""
        if half.other not in self._over:
            self._turns[half.other].put(None)
            self.await_turn(half)
        elif self._error is not None:
            raise PairEnded("the other half of the pair has failed")

    def await_turn(self, half: Half) -> None:
        self._turns[half].get()
        if self._error is not None:
            raise PairEnded("the other half of the pair has failed")

    def end(self, half: Half, error: BaseException | None) -> None:
        """This half is over; the first error of the two is kept."""
        if self._error is None:
            self._error = error
        self._over.add(half)
        self._turns[half.other].put(None)

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class _Worker(threading.Thread):
    """One thread for the backwards of all pairs: a new one for each would set up PyTorch's thread pools anew."""

    def __init__(self) -> None:
        super().__init__(name="backward of pairs", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self.jobs.get()()


_worker: _Worker | None = None


def run_pair(forward: Callable[[], object], backward: Callable[[], object]) -> None:
    """Runs both. The backward has the first turn.

    On a GPU both use the stream and device of the caller. ``forward`` itself must not run autograd: the thread that would do it may be
    the one in which the backward waits for its turn.

    Raises the first error of the two, when both have ended: the other is ended where it next hands over.
    """
    global _current, _worker
    if _current is not None:
        raise RuntimeError("a pair inside a pair")
    if _worker is None or not _worker.is_alive():
        _worker = _Worker()
    pair = _current = _Pair()
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def backward_half() -> None:
        error = None
        try:
            with torch.cuda.device(stream.device) if stream else contextlib.nullcontext(), torch.cuda.stream(stream):
                backward()
        except BaseException as found:  # Whatever it is, it ends the pair, and is raised there.
            error = found
        finally:
            pair.end(Half.BACKWARD, error)
            done.put(None)

    try:
        _worker.jobs.put(backward_half)
        error = None
        try:
            pair.await_turn(Half.FORWARD)
            forward()
        except BaseException as found:
            error = found
        finally:
            pair.end(Half.FORWARD, error)
            done.get()
    finally:
        _current = None
    pair.raise_error()


def _half(in_backward: bool) -> tuple[_Pair | None, Half | None]:
    """The pair, and which half of it runs this code. Forward code in the backward's threads (activations computed once more) is of no
    half: it has set the generator of random numbers, and hands nothing over.
    """
    if _current is None or (threading.get_ident() == _current.forward_thread) is in_backward:
        return None, None
    return _current, Half.BACKWARD if in_backward else Half.FORWARD


def note(what: str, label: str, *, in_backward: bool) -> None:
    """For `record_points`."""
    for record in _records:
        record.append((_half(in_backward)[1], what, label))


def hand_over(*, in_backward: bool) -> None:
    """Gives the turn to the other half, if there is one. ``in_backward``: whether it is called in the backward of a function."""
    pair, half = _half(in_backward)
    if pair is not None and half is not None:
        pair.hand_over(half)


@contextlib.contextmanager
def record_points() -> Iterator[Record]:
    """Records the start of exchanges and the waits for them, in their order, while it is entered."""
    record: Record = []
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [other for other in _records if other is not record]


class _Point(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: torch.Tensor) -> torch.Tensor:
        hand_over(in_backward=False)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: object, *grad_outputs: torch.Tensor) -> torch.Tensor:
        hand_over(in_backward=True)
        return grad_outputs[0]


def point(values: torch.Tensor) -> torch.Tensor:
    """Hands the turn over, here and at the same place of the backward. For communication that is not of this package: put it after what
    starts an exchange and before what waits for it, and have the backward of the second start its exchange and that of the first wait.
    """
    result: torch.Tensor = _Point.apply(values)  # type: ignore[no-untyped-call]
    return result
