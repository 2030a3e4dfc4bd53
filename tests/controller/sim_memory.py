"""Memory and copies of the simulator: arenas, connections into them, and a worker's writer. No bytes, only what they
would mean.

Follows csrc/ff_engine.h: a slot is WRITING from before the first byte until after the last; a receiver takes a slot
that is not complete, else the oldest stamp, and refuses a version older than what it has; `cancel` leaves what was
in flight half-written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ff_core.agent.interfaces import Page
from ff_core.contract.stamps import stamp
from ff_core.copy.arena import ArenaLayout, SlotInfo, SlotState
from ff_core.errors import CorruptSlotError
from ff_core.worker.replicator import Replicator

History = tuple[int, ...]  # the epochs in which the iterations were made that led to a version: its lineage


class Violation(AssertionError):
    """A promise of docs/protocol.md was broken."""


@dataclass
class SimSlot:
    state: SlotState = SlotState.EMPTY
    epoch: int = 0
    version: int = -1
    full: bool = False
    unique: History | None = None
    repl: History | None = None
    scalars: History | None = None
    corrupt: bool = False


class SimArena:
    """Stands in for `ff_core.copy.arena.Arena`. overwrite(arena, slot): called before a slot changes."""

    def __init__(self, layout: ArenaLayout, overwrite: Callable[[SimArena, SimSlot], None]) -> None:
        self.layout, self.overwrite = layout, overwrite
        self.slots = [SimSlot(), SimSlot()]
        self.has_journal = False
        self.closed = False
        self.users = 0
        self.incoming: list[Connection] = []
        self.fd = self  # what travels to the worker

    def slot_infos(self) -> list[SlotInfo]:
        assert not self.closed, "an arena was used after it was freed"
        return [SlotInfo(slot.state, slot.epoch, slot.version, 1, 1, slot.full) for slot in self.slots]

    def find(self, epoch: int, version: int) -> int | None:
        for index, info in enumerate(self.slot_infos()):
            if info.complete and (info.epoch, info.version) == (epoch, version):
                return index
        return None

    def begin(self, index: int, epoch: int, version: int) -> None:
        self.overwrite(self, self.slots[index])
        self.slots[index] = SimSlot(SlotState.WRITING, epoch, version)

    def finish(self, index: int, unique: History, repl: History | None, scalars: History) -> None:
        slot = self.slots[index]
        assert slot.state is SlotState.WRITING and not self.closed
        self.overwrite(self, slot)
        slot.unique, slot.repl, slot.scalars = unique, repl, scalars
        slot.full = repl is not None or not self.layout.local_bytes
        slot.state = SlotState.COMPLETE

    def restamp(self, index: int, epoch: int) -> None:
        assert self.slots[index].state is SlotState.COMPLETE
        self.slots[index].epoch = epoch

    def empty(self, index: int) -> None:
        self.slots[index] = SimSlot()

    def verify(self, index: int) -> SimSlot:
        slot = self.slots[index]
        if slot.state is not SlotState.COMPLETE or slot.corrupt:
            raise CorruptSlotError(f"slot {index} of rank {self.layout.rank} is damaged or not complete")
        return slot

    def corrupt(self, index: int, offset: int) -> None:
        self.slots[index].corrupt = True

    def journal(self) -> bytes:
        return b"journal" if self.has_journal else b""

    def hold(self) -> None:
        self.users += 1

    def release(self) -> None:
        self.users -= 1

    @property
    def in_use(self) -> bool:
        """By who copies it to disk. A fill that is under way stops at its next step when its arena goes."""
        return self.users > 0

    def close(self) -> None:
        assert not self.users, "an arena was freed while it was read"
        self.closed = True
        for connection in self.incoming:  # joined before the memory goes
            connection.open = False

    def choose(self, epoch: int, version: int) -> int:
        """The receiver's choice of a slot (`Connection::choose_slot`)."""
        held = [stamp(s.epoch, s.version) if s.state is SlotState.COMPLETE else 0 for s in self.slots]
        if stamp(epoch, version) < max(held):
            raise Violation(
                f"rank {self.layout.rank}: version ({epoch}, {version}) arrives where {max(held):#x} is already"
            )
        return held.index(min(held))


@dataclass
class Connection:
    """Frames on their way into an arena: they arrive even after the sender died, until the receiver closes."""

    arena: SimArena
    epoch: int
    arrived: Callable[[], None]  # journal or version complete
    frames: deque[tuple[Any, ...]] = field(default_factory=deque)
    acknowledged: deque[int] = field(default_factory=deque)
    open: bool = True
    arriving: int | None = None

    def step(self) -> bool:
        """One frame arrives."""
        if not self.open or not self.frames:
            return False
        kind, version, *content = self.frames.popleft()
        if kind == "journal":
            self.arena.has_journal = True
            self.arrived()
        elif kind == "begin":
            self.arriving = self.arena.choose(self.epoch, version)
            self.arena.begin(self.arriving, self.epoch, version)
        else:
            assert self.arriving is not None
            self.arena.finish(self.arriving, *content)
            self.arriving = None
            self.acknowledged.append(version)
            self.arrived()
        return True


@dataclass
class Flight:
    slot: int
    epoch: int
    version: int
    copied: bool = False
    own: bool = False
    scalars: History | None = None
    content: tuple[History, History | None] | None = None
    begun: int = 0  # links that have sent its first byte; links serve flights in order
    stage: dict[int, int] = field(default_factory=dict)  # link -> 0 nothing, 1 begun, 2 all sent, 3 acknowledged


class SimWriter:
    """A worker's copy engine. live(): (unique, replicated) of the live tensors, a Violation if they are not whole."""

    def __init__(
        self, arena: SimArena, live: Callable[[], tuple[History, History]], committed: Callable[[int], None]
    ) -> None:
        self.arena, self.live, self.committed = arena, live, committed
        self.flights: deque[Flight] = deque()
        self.links: list[Connection] = []
        self.last = 0

    def _launch(self, flight: Flight) -> None:
        number = stamp(flight.epoch, flight.version)
        for other in self.flights:
            if other.slot == flight.slot or other.scalars is None or stamp(other.epoch, other.version) >= number:
                raise Violation(f"rank {self.arena.layout.rank}: {flight} begun while {other} is in flight")
        if number < self.last:
            raise Violation(f"rank {self.arena.layout.rank}: {flight} is older than the last one")
        self.last = number
        flight.stage = dict.fromkeys(range(len(self.links)), 0)
        self.flights.append(flight)

    def begin(self, slot: int, epoch: int, version: int, stream: int) -> None:
        self._launch(Flight(slot, epoch, version))
        self.arena.begin(slot, epoch, version)

    def resend(self, slot: int, epoch: int, version: int) -> None:
        held = self.arena.verify(slot)
        assert held.unique is not None and (held.epoch, held.version) == (epoch, version)
        self._launch(Flight(slot, epoch, version, True, True, held.scalars, (held.unique, held.repl)))

    def seal(self, version: int, scalars: History) -> None:
        flight = self.flights[-1]
        assert flight.version == version and flight.scalars is None
        flight.scalars = scalars

    def is_copied(self, version: int) -> bool:
        return all(flight.copied for flight in self.flights if flight.version == version)

    def cancel(self) -> None:
        self.flights.clear()
        self.links.clear()

    def actions(self) -> list[Callable[[], None]]:
        """What the engine's threads could do next."""
        found: list[Callable[[], None]] = []
        for flight in self.flights:
            if not flight.copied:
                found.append(partial(self._copy, flight))
                break
        for flight in self.flights:
            if flight.copied and flight.scalars is not None and not flight.own:
                found.append(partial(self._complete, flight))
        for number, link in enumerate(self.links):
            due = next((flight for flight in self.flights if flight.stage[number] < 2), None)
            if due is not None and (due.stage[number] == 0 or (due.copied and due.scalars is not None)):
                found.append(partial(self._send, due, number, link))
            if link.acknowledged:
                found.append(partial(self._acknowledge, number, link))
        if self.flights and self.flights[0].own and all(stage == 3 for stage in self.flights[0].stage.values()):
            found.append(self._commit)
        return found

    def _copy(self, flight: Flight) -> None:
        flight.content, flight.copied = self.live(), True

    def _complete(self, flight: Flight) -> None:
        assert flight.content is not None and flight.scalars is not None
        self.arena.finish(flight.slot, *flight.content, flight.scalars)
        flight.own = True

    def _send(self, flight: Flight, number: int, link: Connection) -> None:
        if flight.stage[number] == 0:
            link.frames.append(("journal", -1))
            link.frames.append(("begin", flight.version))
        else:
            assert flight.content is not None
            link.frames.append(("blob", flight.version, flight.content[0], None, flight.scalars))
        flight.stage[number] += 1

    def _acknowledge(self, number: int, link: Connection) -> None:
        version = link.acknowledged.popleft()
        flight = next(f for f in self.flights if f.stage[number] == 2)
        assert flight.version == version
        flight.stage[number] = 3

    def _commit(self) -> None:
        flight = self.flights.popleft()
        self.committed(stamp(flight.epoch, flight.version))


class SimPage(Page):
    """Stands in for `ff_core.copy.page.StatusPage`."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def load(self, word: str) -> int:
        return self.words.get(word, 0)

    def store(self, word: str, value: int) -> None:
        self.words[word] = value

    def notify(self) -> None:
        pass


class _Plan:
    def __init__(self, local_bytes: int) -> None:
        self.local_bytes = local_bytes


class SimReplicator(Replicator):
    """The product's choice of slots over a simulated engine."""

    def __init__(self, rank: int, arena: SimArena, page: SimPage, writer: SimWriter) -> None:
        self._rank, self._page, self._writer = rank, page, writer  # type: ignore[assignment]
        self._plan = _Plan(arena.layout.local_bytes)  # type: ignore[assignment]
        self.arena = arena  # type: ignore[assignment]
        self.newest = self._newest_slot = -1
        self.recommitted = False
        self._epoch = 0
        self._blobs = {}
        self._window = None
        self._device = None
        self.sim = writer

    def _connect_all(self) -> None:
        pass

    def recommit(self, version: int) -> None:
        for index, info in enumerate(self.arena.slot_infos()):
            if info.complete and self.sim.arena.slots[index].corrupt:
                self.arena.empty(index)
        super().recommit(version)
