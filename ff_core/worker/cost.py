"""What copying costs the training: how long it stands still for a version that is copied.

A version costs time in three places, in one iteration or several:
  * behind the step that makes it: its copy is started;
  * at the gate before the next step: the copy must have left the tensors;
  * at the gate before the next step whose version is copied: every rank must have committed.
So costs are counted by version, not by iteration. Iterations that copy nothing do not hide what the others cost.

On a CUDA device the training thread runs ahead of the device. Its wait is no loss while the device has work left. There
the loss is what the device itself stands still, measured between moments (events) on its stream. On the host the two
are the same.

Copies also slow iterations down in which nothing stands still: they take bandwidth and cores. That shows only beside
iterations in which no copy is under way. Where every version is copied there are none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ff_core.worker.pacing import Clock

_KEPT = 100_000  # versions
#: Iterations after a start or a failover that are not measured: kernels are compiled, memory is touched first.
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one copied version; seconds.

    thread_s: the training thread began the copy, and waited at the gate.
    device_s: the device waited until the copy had left the tensors; 0 where they lie on the host.
    fixed_s: the training stood still to begin the copy and until it had left the tensors. No interval changes that.
    late_s: the training stood still until every rank had committed. A longer interval makes it shorter.
    clear: the version was committed everywhere when the training came to its `clear`-th gate after it; `iterations` if
    it had to wait for that.
    iterations: until the next version that was copied.  iteration_s: one of them, without what stood still.
    slowed_s: how much longer the iterations took in which the copy was under way, beside what stood still, than the
    others of `iterations` would have; None: there were no others.
    """

    thread_s: float
    device_s: float
    fixed_s: float
    late_s: float
    clear: int
    iterations: int
    iteration_s: float
    slowed_s: float | None = None

    @property
    def lost_s(self) -> float:
        """The training stood still, for whatever reason."""
        return self.fixed_s + self.late_s


@dataclass(slots=True)
class _Open:
    """A version whose cost is still being counted. Spans are moments of the clock, (start, end).

    bodies: of each iteration, from gate to gate.
    """

    thread_s: float = 0.0
    fixed: list[tuple[Any, Any]] = field(default_factory=list)
    device: list[tuple[Any, Any]] = field(default_factory=list)
    late: list[tuple[Any, Any]] = field(default_factory=list)
    bodies: list[tuple[Any, Any]] = field(default_factory=list)
    clear: int = 0
    iterations: int = 0
    wall_s: float = 0.0


class GatePass:
    """One pass of the gate. copied(): the copy has left the tensors, or the device will wait for that."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.arrived = self.left = clock.now()

    def copied(self) -> None:
        self.left = self._clock.now()


class CopyCosts:
    """Of one rank. clock: of the device or the host.  on_device: of a device, which the training thread runs ahead of.

    measured: the newest costs, the oldest first.  report(cost): called for each, in the training thread.
    wall: seconds.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        on_device: bool,
        report: Callable[[Cost], None] = lambda cost: None,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock, self._on_device, self._report, self._wall = clock, on_device, report, wall
        self.measured: deque[Cost] = deque(maxlen=_KEPT)
        self.iterations = 0
        self._open: _Open | None = None
        self._pending: deque[_Open] = deque()
        self._skip = _WARM_UP
        self._passed: tuple[float, Any] | None = None  # when the thread went through the last gate: wall, moment

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Around the start of a version's copy, in which the next version's cost begins."""
        opened = _Open()
        start, since = self._clock.now(), self._wall()
        yield
        opened.thread_s = self._wall() - since
        opened.fixed.append((start, self._clock.now()))
        self._open = opened

    @contextmanager
    def gate(self, due: bool, committed: bool) -> Iterator[GatePass]:
        """Around a pass of the gate. due: the version that the step behind it makes is copied: the open cost is
        complete with it.  committed: the newest copied version was committed everywhere when the thread came."""
        gate, since = GatePass(self._clock), self._wall()
        yield gate
        now, end = self._wall(), self._clock.now()
        if self._open is not None and self._passed is not None:
            self._open.iterations += 1
            wall_s, moment = self._passed
            self._open.wall_s += now - wall_s
            self._open.bodies.append((moment, gate.arrived))
            self._open.thread_s += now - since
            left = (gate.arrived, gate.left)
            self._open.fixed.append(left)
            if self._on_device:
                self._open.device.append(left)
            self._open.late.append((gate.left, end))
            if committed and not self._open.clear:
                self._open.clear = self._open.iterations
            if due:
                self._complete(self._open)
        if due:
            self._open = None
        self._passed = now, end
        if self._skip:
            self._skip -= 1
        else:
            self.iterations += 1
        self._settle()

    def dropped(self) -> None:
        """A failover: what the interrupted iteration cost says nothing about later ones, nor do the first after it."""
        self._open, self._passed, self._skip = None, None, _WARM_UP
        self._pending.clear()

    def _complete(self, version: _Open) -> None:
        if not self._skip:
            version.clear = version.clear or version.iterations
            self._pending.append(version)

    def _settle(self) -> None:
        """Turn moments into seconds, as far as the device has come to them."""
        while self._pending:
            version = self._pending[0]
            spans = version.fixed, version.device, version.late, version.bodies
            fixed, device, late, bodies = (self._seconds(each) for each in spans)
            if fixed is None or device is None or late is None or bodies is None:
                return
            self._pending.popleft()
            fixed_s, late_s = sum(fixed), sum(late)
            training_s = max(0.0, version.wall_s - fixed_s - late_s) / version.iterations
            bodies[0] -= fixed[0]  # the copy was begun in it
            slowed_s = _beyond(bodies, version.clear)
            cost = Cost(
                version.thread_s, sum(device), fixed_s, late_s, version.clear, version.iterations, training_s, slowed_s
            )
            self.measured.append(cost)
            self._report(cost)

    def _seconds(self, spans: list[tuple[Any, Any]]) -> list[float] | None:
        """Of each span; None: the device has not come to the end of one."""
        found = []
        for start, end in spans:
            seconds = self._clock.seconds(start, end)
            if seconds is None:
                return None
            found.append(seconds)
        return found


def _beyond(bodies: list[float], under_way: int) -> float | None:
    """How much longer the first `under_way` took than as many of the others; None: there are no others."""
    others = bodies[under_way:]
    return sum(bodies[:under_way]) - under_way * sum(others) / len(others) if others else None
