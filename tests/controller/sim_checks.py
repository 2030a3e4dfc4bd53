"""What the simulator checks: the promises of docs/protocol.md, whenever something happens that could break one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ff_core.contract.job import NO_PLACE_CODE, JobSpec
from ff_core.contract.messages import Message
from ff_core.controller.controller import Controller
from ff_core.controller.failover_round import Step
from ff_core.controller.state import JobState
from ff_core.copy.arena import SlotState
from tests.controller.sim_disk import Disk
from tests.controller.sim_memory import SimArena, SimSlot, Violation

if TYPE_CHECKING:
    from tests.controller.sim_agent import AgentHost
    from tests.controller.sim_recovery import Recovering


@dataclass(frozen=True)
class Options:
    """faults: how many of `kinds` happen, at random moments.  same_machine: emulated nodes (a cold start anywhere is
    possible)."""

    nodes: int = 2
    nproc: int = 2
    spares: int = 0
    replicas: int = 1
    interval: int = 1  # 0: another one each time, from 1 to 3
    commit: str = "strict"
    iterations: int = 4
    has_local: bool = False
    has_constant: bool = False
    same_machine: bool = True
    max_restarts: int = 0
    faults: int = 1
    kinds: tuple[str, ...] = ("process",)
    finish_waits: bool = True
    early: bool = False  # the first fault comes during start-up
    standbys: int = 0  # nodes that come after the start, each at a random moment
    late: bool = False  # they come when the job waits for them only, or not at all
    returns: bool = False  # a lost node's machine comes again, under a new number
    persist: bool = False  # versions go to disk
    loops: int = 1  # of the script, one after another, in which it makes its iterations
    again: bool = False  # whoever runs the script again comes to the same ends of them
    breaks: bool = False  # they are left by `break`: nobody can be made to go back into one


class Checks:
    """The part of `World` that raises `Violation`."""

    options: Options
    controller: Controller
    disk: Disk
    job: JobSpec
    now: Callable[[], float]
    random: random.Random
    hosts: dict[int, AgentHost]
    old_messages: list[tuple[int, Message]]

    @property
    def state(self) -> JobState:
        return self.controller.state

    @property
    def ends(self) -> list[int]:
        """Versions with which loops end."""
        loops = self.options.loops
        return [self.options.iterations * (loop + 1) // loops for loop in range(loops)]

    def _is_needed(self, reason: str) -> None:
        """The script starts again, or the job ends, because of `reason`: not for a death between two loops, if all
        could go back to the end of the first. What one process takes with it lies in its own slot."""
        able = not self.options.has_constant and "scripts had ended, too" not in reason
        able = able and (self.options.again or "unrecoverable" not in reason)  # who came late has no older version
        alone = len(self.losses) == 1 and re.fullmatch(r"process \S+ on node \d+", self.losses[0])
        if able and "after the training loop had ended" in reason and (alone or "unrecoverable" not in reason):
            raise Violation(f"nobody goes back to the loop's end: {reason}")

    def __init__(self) -> None:
        super().__init__()
        self.result: tuple[int, str] | None = None
        self.contributions: dict[Any, dict[int, Any]] = {}
        self.verdicts: dict[int, int] = {}
        self.kills: dict[int, int] = {}  # rank -> processes of it that were killed
        self.restarts = 0
        self.safe = -1  # the version that the loss of one failure domain must not take
        self.losses: list[str] = []  # since it was last published
        self.replicated = False  # it lies on a second node, too
        self.copies: dict[Any, list[int]] = {}  # (start, epoch, rank) -> versions, in order
        self.asked = 0  # drains that were asked for
        self.answers: list[str] = []  # how they ended
        self.furthest = -1  # version of the newest step that a rank has begun in this epoch
        self.furthest_in = 0
        self.came_in_time = 0  # nodes that came while the job waited for one
        self.intervals: set[int] = set()  # that ranks were told

    def _verdict(self, message: Message) -> None:
        epoch, version = message["epoch"], message["version"]
        if self.verdicts.setdefault(epoch, version) != version:
            raise Violation(f"two verdicts of epoch {epoch}")
        if version in self.state.unfindable:
            raise Violation(f"back to version {version}, with which a loop was left")
        if self.safe in self.state.unfindable:
            self.safe = -1  # nobody can go on from there, and older ones are promised to nobody
        if version < self.safe and self._promised():
            raise Violation(f"back to version {version}, but {self.safe} was safe and only {self.losses} was lost")

        self._lost_nothing(version)

    def _lost_nothing(self, version: int) -> None:
        """A drain, and nothing else: no rank has begun what is not kept."""
        current = self.state.round
        assert current is not None
        alone = current.attempts == 1 and re.fullmatch(r"node \d+ is drained \(.*\)(; node \d+ is .*)*", current.cause)
        if alone and self.furthest_in == current.old_epoch and self.furthest != version and self.furthest >= 0:
            raise Violation(f"{current.cause}: back to {version}, but {self.furthest} had been begun")

    def drained(self, reason: str) -> None:
        """How a drain has ended."""
        self.answers.append(reason)

    def _promised(self) -> bool:
        """Whether what was lost since W was published last must not cost W: one failure domain, or processes only."""
        processes = all(loss.startswith("process") for loss in self.losses)
        if sum(loss.endswith("undead") for loss in self.losses) > 1:
            return False  # their own slots are lost, too
        if not processes and not self.replicated:
            return False
        whole = not self.options.has_local and not self.options.has_constant
        survivors = any(rank.alive and rank.restored for rank in self.state.members.ranks.values())
        domains = {re.sub(r".*(node \d+).*", r"\1", loss) for loss in self.losses}  # a slot is one of its own
        return (whole or survivors) and (len(domains) <= 1 or processes)

    def copied(self, rank: int, epoch: int, version: int) -> None:
        """A rank has begun to copy a version: every rank must copy the same ones, each the first in its epoch."""
        mine = self.copies.setdefault((self.restarts, epoch, rank), [])
        mine.append(version)
        for other in range(self.job.world_size):
            theirs = self.copies.get((self.restarts, epoch, other), [])
            if any(a != b for a, b in zip(mine, theirs, strict=False)):
                raise Violation(f"epoch {epoch}: rank {rank} copies {mine}, rank {other} {theirs}")

    def runs(self, epoch: int, version: int) -> None:
        """A rank begins the step that makes `version`: no further than what a death may cost."""
        if epoch > self.furthest_in:
            self.furthest_in, self.furthest = epoch, -1
        self.furthest = max(self.furthest, version)
        schedule = self.controller.copying.schedule
        limit = schedule.next + 1 if self.options.commit == "strict" else schedule.limit
        if epoch == self.state.epoch and version >= limit and self.state.w < schedule.next:
            raise Violation(f"a rank makes version {version}, though W = {self.state.w} and the limit is {limit}")

    def resumed(self, worker: Recovering, epoch: int, version: int) -> None:
        """A rank goes on (or starts) with what it holds now."""
        if worker.repl != worker.unique or worker.unique is None or len(worker.unique) != version:
            raise Violation(f"rank {worker.rank} goes on at version {version} with {worker.unique} and {worker.repl}")
        if self.options.breaks and version in self.ends and version != self.state.begun_from:
            raise Violation(f"rank {worker.rank} goes on at {version}, where its loop had been left")
        if self.options.has_constant and not worker.const:
            raise Violation(f"rank {worker.rank} goes on without the frozen state")
        if version < worker.forgotten:
            raise Violation(f"rank {worker.rank} goes on at {version}, batches up to {worker.forgotten} are gone")
        if epoch in self.verdicts and self.verdicts[epoch] != version:
            raise Violation(f"rank {worker.rank} goes on at {version}, the verdict was {self.verdicts[epoch]}")
        self.collective(("resumed", epoch), worker.rank, worker.unique)

    def collective(self, key: Any, rank: int, content: Any, same: bool = True) -> Callable[[], bool]:
        """A rank arrives; the result says whether all have. same: all must bring the same."""
        given = self.contributions.setdefault((self.restarts, *key) if same else key, {})
        given[rank] = content
        if same and any(other != content for other in given.values()):
            raise Violation(f"{key}: ranks disagree: {given}")
        return lambda: len(given) == self.job.world_size

    def overwritten(self, host: AgentHost, arena: SimArena, slot: SimSlot) -> None:
        """A slot of `host` is about to change."""
        if host.agent.state.halt_epoch is not None and host.reported == host.agent.state.halt_epoch:
            raise Violation(f"rank {arena.layout.rank}: a slot changes after node {host.node} has reported its slots")
        if slot.state is not SlotState.COMPLETE:
            return
        state = self.state
        twin = sum(s.state is SlotState.COMPLETE and s.version == slot.version for s in arena.slots) > 1
        if slot.epoch == state.epoch and state.w >= 0 and slot.version >= state.w and not twin:
            raise Violation(f"rank {arena.layout.rank}: version {slot.version} is overwritten while W = {state.w}")

    def _replay(self) -> None:
        """A message of an earlier epoch, once more."""
        if self.old_messages and self.random.random() < 0.5:
            node, message = self.random.choice(self.old_messages)
            if node in self.state.members.nodes and message["epoch"] < self.state.epoch and not self.state.finished:
                before = self._snapshot()
                self.controller.handle(node, dict(message))
                if self._snapshot() != before:
                    raise Violation(f"a message of an old epoch changed something: {message}")

    def _snapshot(self) -> str:
        c = self.state
        return repr(
            (
                c.epoch,
                c.w,
                self.controller.copying.schedule.limit,
                c.finished,
                c.left_version,
                c.round,
                list(c.members.ranks.values()),
                self.result,
                [len(h.from_controller) for h in self.hosts.values()],
            )
        )

    def abandon(self, node: int) -> None:
        pass  # a lost node's agent hears `stop` or has gone

    def waits(self) -> bool:
        """Everybody has halted, and ranks have no place."""
        current = self.state.round
        return current is not None and current.step is Step.HALTING and current.waits_since is not None

    def _nobody_came(self) -> None:
        """The job may end for want of a node only when the time for that is over, and while nobody has room."""
        current, members = self.state.round, self.state.members
        if current is None or current.waits_since is None or not members.absent():
            raise Violation("the job ends for want of a node, and has not waited for one")
        if self.now() - current.waits_since < self.state.config.place_timeout_s:
            raise Violation("the job ends for want of a node before its time is over")
        if self.options.same_machine or any(members.take_replacement(members.ranks[r].node) for r in members.absent()):
            raise Violation("the job ends for want of a node, and some node has room")

    def finish(self, code: int, summary: str) -> None:
        self.result = (code, summary)
        if code == 0:
            return
        twice = re.search(r"rank (\d+) .*; it (failed twice|was killed 4 times) in iteration", summary)
        if twice and self.kills.get(int(twice.group(1)), 0) >= (2 if twice.group(2) == "failed twice" else 4):
            return
        if code == NO_PLACE_CODE:
            self._nobody_came()
            if self.options.persist and "not written" not in summary and self._promised():
                newest = max((manifest.version for manifest in self.disk.manifests), default=-1)
                if newest < self.safe:
                    raise Violation(f"the job ends with version {newest} on disk, but {self.safe} was safe")
            return
        if "no node is left" in summary and not self.state.members.live_nodes():
            return
        self._is_needed(summary)
        if not re.search("unrecoverable|training loop had ended|had left the training|before training was", summary):
            raise Violation(f"the job ends without need: {summary}")
