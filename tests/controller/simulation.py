"""A whole job in one thread, without torch, sockets or time: the real controller and agents over simulated workers
and memory.

`World(options).run()` draws every interleaving and every fault from one seed and raises `Violation` when a promise of
docs/protocol.md is broken:
  * after a failover all ranks go on from one version of one lineage, with scalars of that version;
  * that version is at least the W published before, as long as one failure domain is lost at a time;
  * every rank copies the same versions, and no rank runs further ahead than slots allow, whatever intervals come;
  * a slot that holds W is not overwritten;  * a message of another epoch changes nothing;  * the job ends.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ff_core.agent import agent as agent_module
from ff_core.agent import halting as halting_module
from ff_core.agent import persister as persister_module
from ff_core.agent import replica_store as store_module
from ff_core.agent import spares as spares_module
from ff_core.agent import verdicts as verdicts_module
from ff_core.config.schema import FailoverConfig
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import CONTROLLER_TO_AGENT, Message, make, pack, unpack
from ff_core.controller import copying as copying_module
from ff_core.controller import startup as startup_module
from ff_core.controller.controller import Controller
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from tests.controller.sim_agent import AgentHost
from tests.controller.sim_checks import Checks, Options
from tests.controller.sim_disk import Disk
from tests.controller.sim_faults import Faults
from tests.controller.sim_memory import Connection, SimArena, Violation
from tests.controller.sim_process import pause
from tests.controller.sim_takeover import Takeovers

MOST_STEPS = 120_000


async def _elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """For asyncio.to_thread: others may go on before the work is done."""
    await pause()
    return work(*arguments)


class World(Checks, Faults, Takeovers, Outbox):
    """The job, its faults and its checks. It is the controller's Outbox."""

    def __init__(self, seed: int, options: Options, disk: Disk | None = None) -> None:
        """disk: what an earlier job has left there."""
        super().__init__()
        self.disk = disk or Disk()
        self.random = random.Random(seed)
        self.seed, self.options = seed, options
        commit: Any = options.commit
        self.settings = FailoverConfig(
            enabled=True, replicas=options.replicas, interval=options.interval or "auto", commit=commit,
            spares=options.spares, persist_dir="/disk" if options.persist else "", persist_interval_s=0.05,
        ).to_dict()
        self.job = JobSpec(
            ["train.py"],
            options.nodes,
            options.nproc,
            "",
            0,
            emulated=options.same_machine,
            max_restarts=options.max_restarts,
            config=self.settings,
        )
        self.hosts: dict[int, AgentHost] = {}
        self.hosting: AgentHost | None = None
        self.controller = Controller(self.job, FailoverConfig.from_dict(self.settings), self, self.disk.find)
        self.steps = 0
        self.trace: deque[str] = deque(maxlen=400)
        self.faults_left = options.faults
        #: step of the next fault; None until training is protected
        self.next_fault = self.random.randrange(1, 100 * self.job.world_size) if options.early else None
        self.old_messages: list[tuple[int, Message]] = []
        self.epoch_seen = 0
        self.lost: list[int] = []  # nodes whose end the controller has not been told of
        most = 60 * self.job.world_size * options.iterations
        self.coming = [self.random.randrange(most) + options.late * MOST_STEPS for _ in range(options.standbys)]
        self.failovers = 0
        self.sent = 0
        self.passed = 0.0  # seconds that were waited for a deadline

    # ---- Outbox ----------------------------------------------------------------------------------------------------

    def send(self, node: int, name: str, **fields: Any) -> None:
        message = unpack(CONTROLLER_TO_AGENT, pack(make(CONTROLLER_TO_AGENT, name, **fields)))
        if "epoch" in message:
            # A node that comes in the middle of a halt begins in the epoch that ends.
            came = name in ("start", "arenas") and node >= self.options.nodes
            if message["epoch"] < self.epoch_seen - came:
                raise Violation(f"{name} of epoch {message['epoch']} after epoch {self.epoch_seen}")
            self.epoch_seen = max(self.epoch_seen, message["epoch"])
        if name == "may_leave" and message["version"] > self.state.w:
            raise Violation(f"ranks may leave with version {message['version']}, but W = {self.state.w}")
        if "interval" in message:
            self.intervals.add(message["interval"])
        if name == "w":
            self.safe = message["version"]
            self.replicated = all(rank.holders for rank in self.state.members.ranks.values())
            unnoticed = [f"node {number}" for number in self.lost]
            self.losses = [loss for loss in self.losses if loss in unnoticed or loss.startswith("slot")]
        elif name == "verdict":
            self._verdict(message)
        self.sent += 1
        self.hosts[node].from_controller.append(message)
        if name == "verdict" and self.tears:
            self.tears, self.next_fault = False, self.steps + self.random.randrange(1, 30)
            self.forced = "controller"
        self.trace.append(f"{self.steps}: controller -> {node}: {message}")

    def emit(self, kind: str, **fields: Any) -> None:
        if kind == "failover":
            self.failovers += 1
        elif kind == "training_start" and self.faults_left and self.next_fault is None:
            ranks = self.job.world_size
            self.next_fault = self.steps + self.random.randrange(40 * ranks, 90 * ranks * self.options.iterations)
        elif kind == "unrecoverable" and self._promised() and self.safe >= 0 and not self.state.unfindable:
            raise Violation(f"given up although {self.safe} was safe and only {self.losses} was lost: {fields}")
        elif kind == "restart":
            self._is_needed(fields["reason"])
            self.restarts += 1
            self.safe, self.losses = -1, []
            self.contributions.clear()

    def say(self, text: str) -> None:
        self.trace.append(f"{self.steps}: {text}")

    def now(self) -> float:
        return self.passed + self.steps * 1e-3

    def _any_choice(self, *_: Any, **__: Any) -> Any:
        """Stands in for what ranks have measured: whenever the interval is asked for it is another one."""
        world = self

        class AnyChoice:
            interval = 1

            def choose(self) -> None:
                self.interval = world.random.randrange(1, 4)

            forget = choose

        return AnyChoice()

    # ---- connections -----------------------------------------------------------------------------------------------

    def can_connect(self, node: int, epoch: int) -> bool:
        host = self.hosts[node]
        return host.alive and host.port.epoch == epoch

    def connect(self, node: int, kind: str, rank: int, epoch: int) -> Connection | None:
        host = self.hosts[node]
        return host.port.accept(kind, rank, epoch) if host.alive else None

    # ---- the controller's side of the streams ----------------------------------------------------------------------

    def _to_controller(self, host: AgentHost) -> bool:
        if self.headless:
            return False
        if host.node in self.left_behind:
            host.to_controller.clear()  # nobody hears it
        if not host.to_controller:
            if host.node in self.lost:
                self.lost.remove(host.node)
                self.controller.node_down(host.node, "its connection closed")
                return True
            return False
        message = host.to_controller.popleft()
        self.trace.append(f"{self.steps}: {host.node} -> controller: {message}")
        if "epoch" in message:
            self.old_messages.append((host.node, message))
        if message["t"] != "stopped":
            self.controller.handle(host.node, message)
        self._replay()
        return True

    # ---- running ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _patched(self) -> Iterator[None]:
        def create(layout: Any, name: str = "") -> SimArena:
            host = self.hosting
            assert host is not None
            return SimArena(layout, lambda arena, slot: self.overwritten(host, arena, slot))

        def hosting(*_: Any, **__: Any) -> Any:
            assert self.hosting is not None
            return self.hosting.workers

        loop = SimpleNamespace(get_running_loop=lambda: self.hosting, Event=asyncio.Event, to_thread=_elsewhere)
        loop.sleep = lambda delay_s: pause()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(store_module, "Arena", SimpleNamespace(create=create)))
            stack.enter_context(mock.patch.object(startup_module, "arena_bytes", lambda layout: 4096))
            stack.enter_context(mock.patch.object(agent_module, "Workers", hosting))
            stack.enter_context(mock.patch.object(copying_module, "IntervalChoice", self._any_choice))
            stack.enter_context(mock.patch.object(agent_module, "asyncio", loop))
            stack.enter_context(mock.patch.object(halting_module, "asyncio", loop))
            stack.enter_context(mock.patch.object(spares_module, "asyncio", loop))
            stack.enter_context(mock.patch.object(verdicts_module, "asyncio", loop))
            stack.enter_context(mock.patch.object(persister_module, "asyncio", loop))
            stack.enter_context(mock.patch.object(persister_module, "version_files", self.disk))
            yield

    def run(self, until: int = MOST_STEPS + 1) -> tuple[int, str] | None:
        """Until the job is over: (exit code, last words). None: the power went off after so many steps."""
        with self._patched():
            for node in range(self.options.nodes):
                self.hosts[node] = AgentHost(self, node, self.job)
            for node in self.hosts:
                self._node_up(node)
            idle, draw, hosts = 0, self.random.random, list(self.hosts.values())
            while self.result is None and self.steps < until:
                self.steps += 1
                if self.coming and self.steps >= min(self.coming) and not self.headless:
                    self._another()
                hosts = list(self.hosts.values()) if len(hosts) < len(self.hosts) else hosts
                if self.controller.drains.waiting and not self.headless:
                    self.controller.drains.tick(self.now())
                    self.controller.succession.look()
                if self.next_fault is not None and self.steps >= self.next_fault:
                    self._fault()
                steps = self._steps(hosts[int(draw() * len(hosts))])
                if steps[int(draw() * len(steps))]() or steps[int(draw() * len(steps))]():
                    idle = 0
                    continue
                idle += 1
                if idle > 60:
                    idle = 0
                    self._sweep()
                if self.steps > MOST_STEPS:
                    raise Violation("the job does not end")
        return self.result

    def _another(self) -> None:
        """One more node comes."""
        self.coming.remove(min(self.coming))
        node = len(self.hosts)
        self.hosts[node] = AgentHost(self, node, self.job)
        self._node_up(node)

    def _node_up(self, node: int) -> None:
        self.controller.node_up(self.described(node))

    def described(self, node: int) -> Node:
        machine = "m" if self.options.same_machine else f"m{node}"
        deputy = ("host", node) if {"controller", "torn", "silence"} & {*self.options.kinds} else None
        return Node(node, machine, machine, ("host", node), 1 << 40, 0.0, deputy)

    def _steps(self, host: AgentHost) -> list[Callable[[], bool]]:
        found: list[Callable[[], bool]] = [lambda: self._to_controller(host)]
        if host.alive:
            found += host.steps()
        if self.headless:
            found += [lambda: self.look_for_another(host), self.elect]
        elif host.node in self.left_behind:
            found.append(lambda: self.is_refused(host))
        return found

    def _sweep(self) -> None:
        """Everybody once; if nobody gets anywhere time passes, and if no deadline is left to pass the job hangs."""
        hosts = list(self.hosts.values())
        self.random.shuffle(hosts)
        for _ in range(2):  # a worker that did something and then had to wait says so only the next time
            for host in hosts:
                steps = self._steps(host)
                self.random.shuffle(steps)
                if any(step() for step in steps):
                    return
        timers = [(host, timer) for host in hosts if host.alive for timer in host.timers]
        for host, timer in timers:
            host.timers.remove(timer)
            self.hosting = host
            timer[0](*timer[1])
        if timers:
            return
        if self.waits() and self.coming and self.random.random() < 0.7:
            self.came_in_time += 1
            self._another()
            return
        if self.headless:
            self.nobody_takes_over()
            return
        if self.prove():
            return
        before, config = self.sent, self.state.config
        self.passed += 2 * max(config.join_timeout_s, config.regroup_timeout_s, config.place_timeout_s)
        self.controller.failovers.tick(self.now())
        self.controller.drains.tick(self.now())
        self.controller.succession.look()
        undead = [process for host in hosts for process in host.processes if process.undead]
        if self.sent == before and undead:  # outside the loop only its end counts, which comes in the end
            undead[0].undead = False
        elif self.sent == before and self.result is None:
            raise Violation("deadlock: nobody can go on")


def simulate(seed: int, options: Options, disk: Disk | None = None, until: int = MOST_STEPS + 1) -> World:
    """Run one job; a Violation says what to repeat it with. disk, until: see World."""
    world = World(seed, options, disk)
    try:
        world.run(until)
    except Violation as violation:
        raise Violation(f"{violation}\nseed {seed}, {options}") from violation
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {error}\nseed {seed}, {options}") from error
    return world
