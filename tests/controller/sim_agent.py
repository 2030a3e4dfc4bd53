"""The product's `Agent` over simulated processes, links and data connections; its coroutines are driven by hand, one
await at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ff_core.agent.agent import Agent
from ff_core.agent.interfaces import Port, PortOwner
from ff_core.agent.kernel_log import KernelLog
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import AGENT_TO_CONTROLLER, make, pack, unpack
from ff_core.copy.arena import slot_with
from ff_core.errors import CorruptSlotError
from tests.controller.sim_memory import Connection, SimArena
from tests.controller.sim_process import SimProcess, SimWorkers, pause

if TYPE_CHECKING:
    from tests.controller.simulation import World


class SimPort(Port):
    """Stands in for `ff_core.agent.data_port.DataPort`. reach(node): another node's port, None if it is off."""

    def __init__(self, reach: Callable[[int], SimPort | None]) -> None:
        self.reach = reach
        self.owner: PortOwner | None = None
        self.epoch = 0
        self.retired_before = 0
        self.incoming: list[Connection] = []
        self.outgoing: list[Fill] = []

    def set_owner(self, owner: PortOwner) -> None:
        assert self.owner is None
        self.owner = owner

    async def retire_before(self, epoch: int) -> None:
        await pause()
        for connection in self.incoming:
            if connection.epoch < epoch:
                connection.open = False
        self.incoming = [connection for connection in self.incoming if connection.open]
        for fill in self.outgoing:
            fill.stopped = True
        self.retired_before = epoch

    def share(self, transport: str, emulated: bool, streams: Any) -> None:
        """What the job's settings say of connections; here there is one kind."""

    async def quiet(self) -> None:
        await pause()
        for fill in self.outgoing:
            fill.stopped = True

    def enter_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def accept(self, kind: str, rank: int, epoch: int) -> Connection | None:
        """A peer that knows the secret is connected; None: refused."""
        if epoch != self.epoch or self.retired_before > epoch:
            return None
        if self.owner is None:
            return None
        arena: Any = self.owner.arena_for({"kind": kind, "rank": rank, "epoch": epoch})
        for old in self.incoming:
            if old.arena is arena:
                old.open = False
        connection = Connection(arena, epoch, self.owner.data_arrived)
        arena.incoming.append(connection)
        self.incoming.append(connection)
        return connection

    def send(self, order: dict[str, Any], arena: Any, epoch: int, version: int, failed: Callable[[str], None]) -> None:
        self.outgoing.append(Fill(self, order, arena, epoch, version, failed))


class Fill:
    """A slot on its way from one agent into an arena of another."""

    def __init__(
        self,
        port: SimPort,
        order: dict[str, Any],
        arena: SimArena,
        epoch: int,
        version: int,
        failed: Callable[[str], None],
    ) -> None:
        self.port, self.order, self.arena = port, order, arena
        self.epoch, self.version, self.failed = epoch, version, failed
        self.connection: Connection | None = None
        self.stage = 0
        self.stopped = False

    def step(self) -> bool:
        """One frame leaves; False while the other side is not ready."""
        target = self.port.reach(self.order["to_node"])
        if self.stopped or self.arena.closed or target is None:
            return self._end("connection closed")
        if self.connection is None:
            if target.epoch < self.epoch:
                return False
            self.connection = target.accept("own", self.order["rank"], self.epoch)
            return True if self.connection is not None else self._end("refused")
        frames = self.connection.frames
        if not self.connection.open:
            return self._end("connection closed")
        try:
            slot = self.arena.verify(slot_with(self.arena, self.epoch, self.version))  # type: ignore[arg-type]
        except CorruptSlotError as error:
            return self._end(str(error))
        if self.stage == 0:
            frames.append(("journal", -1))
        elif self.stage == 1:
            frames.append(("begin", self.version))
        else:
            frames.append(("blob", self.version, slot.unique, None, slot.scalars))
            self.port.outgoing.remove(self)
        self.stage += 1
        return True

    def _end(self, why: str) -> bool:
        self.port.outgoing.remove(self)
        if self.connection is not None:
            self.connection.open = False
        if self.epoch == self.port.epoch:
            self.failed(why)
        return True


_NO_KERNEL = KernelLog("/dev/null")


class SimTask:
    """The part of an asyncio.Task that the agent asks for."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.work = work
        self.callbacks: list[Callable[[Any], object]] = []

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self.callbacks.append(callback)


class AgentHost:
    """One node: the agent, its processes, and its stream to and from the controller."""

    def __init__(self, world: World, node: int, job: JobSpec) -> None:
        self.world, self.node = world, node
        self.alive = True
        self.reported = -1  # epoch of the newest inventory
        self.was_heard = True  # the controller has not given it up for its silence
        self.deputy: int | None = None  # whom it has joined
        self.processes: list[SimProcess] = []
        self.workers = SimWorkers(self)
        self.port = SimPort(lambda node: world.hosts[node].port if world.hosts[node].alive else None)
        self.from_controller: deque[dict[str, Any]] = deque()
        self.to_controller: deque[dict[str, Any]] = deque()
        self.current: Coroutine[Any, Any, None] | None = None
        self.handled = ""  # name of the message that `current` handles
        self.tasks: list[SimTask] = []
        self.clock_s = 0.0
        self.timers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        world.hosting = self  # the patched `Workers` asks for it
        self.agent = Agent(node, job, b"secret", self.port, self._send, lambda text: None, _NO_KERNEL)

    def _send(self, name: str, **fields: Any) -> None:
        if name == "inventory":
            self.reported = fields["epoch"]
        message = make(AGENT_TO_CONTROLLER, name, **fields)
        self.to_controller.append(unpack(AGENT_TO_CONTROLLER, pack(message)))

    # the part of an event loop that the agent asks for
    def time(self) -> float:
        return self.clock_s

    def call_later(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> None:
        def due() -> None:
            self.clock_s = max(self.clock_s, at_s)
            callback(*arguments)

        at_s = self.clock_s + delay_s
        self.timers.append((due, ()))

    def create_task(self, work: Coroutine[Any, Any, None]) -> SimTask:
        task = SimTask(work)
        self.tasks.append(task)
        return task

    def steps(self) -> list[Callable[[], bool]]:
        found = [self.handle, self.run_tasks]
        found += [connection.step for connection in self.port.incoming]
        found += [fetch.step for fetch in self.port.outgoing]
        for process in self.processes:
            found += process.steps
        return found

    def handle(self) -> bool:
        """Go on with the controller's message that is being handled, or begin with the next one."""
        if self.current is None:
            if not self.from_controller:
                return False
            message = self.from_controller.popleft()
            self.current, self.handled = self.agent.handle(message), message["t"]
        if not self._advance(self.current):
            self.current, self.handled = None, ""
            if self.agent.done.is_set():
                self.die()  # its process ends
        return True

    def run_tasks(self) -> bool:
        if not self.tasks:
            return False
        task = self.world.random.choice(self.tasks)
        if not self._advance(task.work):
            self.tasks.remove(task)
            for callback in task.callbacks:
                callback(task)
        return True

    def _advance(self, work: Coroutine[Any, Any, None]) -> bool:
        self.world.hosting = self
        try:
            work.send(None)
            return True
        except StopIteration:
            return False

    def die(self) -> None:
        """Power off: everything on the node is gone; what it sent last may or may not arrive."""
        self.alive = False
        for connection in self.port.incoming:
            connection.open = False
