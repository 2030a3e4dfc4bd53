"""The worker's side of failover: what a framework's hooks call, and the order in which things happen.

    failover = current()                 # None when this process was not started by `fftrain run`
    failover.attach(adapter)             # once engine and optimizer are complete
    failover.start_training()            # at the first iteration; a newcomer is restored here
    with failover.step(): ...            # around the inner optimizer step
    failover.seal()                      # when the loop asks for more
    except FailoverInterrupt: ...  failover.recover(interrupt)
    failover.finish()                    # the loop is over

All methods but `halt` run in the training thread. States and invariants: docs/protocol.md, sections 2 to 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import ALL_FIELDS, LAUNCH_FIELDS, SCRIPT, Settings
from ff_core.copy import transports
from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.state import codec, found, registered, rng
from ff_core.state.razor import Plan, describe, make_plan
from ff_core.worker import garbage
from ff_core.worker.faults import Faults
from ff_core.worker.fence import Fence
from ff_core.worker.gate import CommitGate
from ff_core.worker.inbox import Inbox
from ff_core.worker.preload import changed_environment, library_modules
from ff_core.worker.rank_stats import BlockedTime, rank_stats
from ff_core.worker.recovery import Recovery
from ff_core.worker.replicator import Replicator, open_arena

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_core.contract.adapter import TrainerAdapter
    from ff_core.contract.link import WorkerLink
    from ff_core.contract.messages import Message

_current: Failover | None = None


def current() -> Failover | None:
    """This process's failover, or None outside `fftrain run`."""
    return _current


def set_current(failover: Failover | None) -> None:
    """Called by `ff_core.worker.boot.boot` only."""
    global _current
    _current = failover


class Failover:
    """One worker's protection, from boot to the end of the script."""

    def __init__(self, link: WorkerLink, role: Message, page: StatusPage, notify_fd: int) -> None:
        self.link, self.page, self.notify_fd = link, page, notify_fd
        self.rank: int = role["rank"]
        self.world_size: int = role["world_size"]
        self.secret: bytes = role["secret"]
        self._ranks_per_node: int = role["job"]["nproc_per_node"]
        self._settings = Settings.from_wire(role["job"]["config"], secret=self.secret.decode())
        self.config = self._settings.config
        self.is_replacement: bool = role["newcomer"]
        self.is_newcomer: bool = role["newcomer"]
        self.fence = Fence(page, role["epoch"])
        self.inbox = Inbox()
        self.registry: GroupRegistry | None = None
        self.adapter: TrainerAdapter | None = None
        self.plan: Plan | None = None
        self.replicator: Replicator | None = None
        self.protection = ""
        self.preload_calls: list[list[Any]] = [["ff_core.worker.script:compile_ahead", [role["entrypoint"]]]]
        self._gate = CommitGate(self)
        self._blocked = BlockedTime()
        self._redo_until: int | None = None
        self._recovery = Recovery(self)
        self._at_end: list[Callable[[], None]] = []
        self._faults = Faults(link, self.inbox, self.rank, role["injections"])

    # ---- what hooks ask ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Membership epoch; +1 per failover."""
        return self.fence.epoch

    @property
    def version(self) -> int:
        """Finished inner steps of the live tensors; -1 before training has started."""
        return self.fence.version

    @property
    def committed_version(self) -> int:
        """W: the newest version safe everywhere, -1 if none yet in this epoch."""
        return self.replicator.committed_version() if self.replicator else -1

    @property
    def oldest_needed(self) -> int:
        """No verdict goes back behind this version: batches of iterations up to it can be forgotten."""
        return self.committed_version - self.config.interval

    @property
    def training(self) -> bool:
        """start_training() is done."""
        return self.replicator is not None and not self.is_newcomer

    def check(self) -> None:
        """Raise FailoverInterrupt if the job has been halted."""
        self.fence.check()

    def configure(self, config: FailoverConfig) -> None:
        """What the script gives to its framework (the ff_failover block), before start_training(). Raises ConfigError
        for a field that comes too late, or that the launcher was given with another value."""
        closed = ALL_FIELDS if self.is_newcomer else LAUNCH_FIELDS
        self._settings = self._settings.joined(Settings.given(config, SCRIPT), closed)
        self.config = self._settings.config

    def attach(self, adapter: TrainerAdapter) -> None:
        """The framework's engine is complete; from now on `adapter` speaks for it."""
        if self.adapter is not None and self.adapter is not adapter:
            raise FailoverError("a second engine was made in this process: ff_failover protects one engine per process")
        self.adapter = adapter

    # ---- start ------------------------------------------------------------------------------------------------------

    def start_training(self) -> int:
        """Begin to protect (first start: version 0 is copied) or, in a newcomer, take the dead rank's place.
        Idempotent.

        Returns the version of the live state. A newcomer may only come here with its groups still solo.
        """
        if self.training:
            return self.version
        if self.adapter is None:
            raise FailoverError("start_training() before attach(): no engine has been made yet")
        assert self.registry is not None
        with garbage.put_off():
            self.plan = make_plan(self.adapter.tensors())
        journal = self.registry.freeze_journal()
        if self.is_newcomer:
            version = self._recovery.join()
            found.begin()
            self.is_newcomer = False
            return version
        found.begin()
        blob, peers = self.take_scalars(), self.adapter.peers()
        self.link.send(
            "protect",
            rank=self.rank,
            sent_bytes=self.plan.sent_bytes,
            local_bytes=self.plan.local_bytes,
            blob_capacity=max(2 * len(blob), len(blob) + (1 << 20)) + found.expected_bytes(),
            journal_bytes=len(journal),
            chunk_bytes=self.config.chunk_bytes,
            settings=self._settings.to_wire(),
            has_constant=self._recovery.has_constant(self.plan),
            on_device=self.plan.on_device,
            **({} if peers is None else {"peers": peers}),
        )
        message, fds = self.inbox.take("arena", lambda m: True, self.check)
        self.protection = message["protected"]
        self.open_replicator(fds)
        assert self.replicator is not None
        self.replicator.arena.set_journal(journal)
        self.replicator.connect(message["holders"], self.epoch)
        if self.rank == 0:
            print(describe(self.plan, self.protection), file=sys.stderr, flush=True)
            if message["holders"]:
                advice = transports.advice(self.config.transport)
                text = f"replicas travel by {self.replicator.transport}" + (f"; {advice}" if advice else "")
                print(f"fftrain: {text}", file=sys.stderr, flush=True)
        self.replicator.keep_blob(0, blob)
        self.fence.resume(0, self.replicator.recommit)
        self.link.send("training", rank=self.rank)
        return 0

    def open_replicator(self, fds: list[int]) -> None:
        """Map the arena that the agent sent (its descriptors become ours) and start the copy engine on it."""
        assert self.plan is not None
        arena = open_arena(fds)
        if (arena.layout.sent_bytes, arena.layout.local_bytes) != (self.plan.sent_bytes, self.plan.local_bytes):
            raise FailoverError(
                f"this replacement of rank {self.rank} has {self.plan.sent_bytes} + {self.plan.local_bytes} bytes of "
                f"state, the rank it replaces had {arena.layout.sent_bytes} + {arena.layout.local_bytes}: "
                "the script built something else than before"
            )
        self.replicator = Replicator(
            self.rank, self.plan, arena, self.page, self.notify_fd, self.secret, self.config, self._ranks_per_node
        )

    def saved_scalars(self) -> dict[str, Any]:
        """In a newcomer before start_training(): the adapter's scalars of the version it will probably begin from.

        Another failure may still move that version: what load_scalars() gets is final.
        """
        if not self.is_newcomer:
            raise FailoverError("saved_scalars() in a process that is not a newcomer")
        scalars: dict[str, Any] = self._recovery.peek()["adapter"]
        return scalars

    # ---- an iteration -----------------------------------------------------------------------------------------------

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the inner optimizer step: waits at the commit gate before, starts the copy of the new version
        after."""
        assert self.replicator is not None
        if self.fence.sealed < self.version:
            raise FailoverError(
                f"a second optimizer step before iteration {self.version} was complete: an iteration is one step; "
                "ask the loop for the next batches (or call seal()) between steps"
            )
        with self._blocked:
            self.replicator.at_gate()
            self._gate.pass_(self.version + 1, self._scheduled(self.version + 1))
            self.fence.enter_step()
        with found.framework_steps():
            yield
        with self._blocked:
            self.fence.leave_step(self._copy)
        self.inject("copying", self.version)

    def _scheduled(self, version: int) -> bool:
        return version % self.config.interval == 0

    def _copy(self, version: int) -> None:
        assert self.replicator is not None
        if self._scheduled(version):
            self.replicator.begin(version)

    def take_scalars(self) -> bytes:
        """Everything of the live version that is not a copied tensor, encoded."""
        assert self.adapter is not None and self.registry is not None
        return codec.encode(
            {
                "adapter": self.adapter.scalars(),
                "registered": registered.collect(),
                "rng": rng.capture(),
                "late_groups": self.registry.late_groups(),
            },
            name="scalars",
        )

    def seal(self) -> None:
        """The iteration that made the live version is complete. Nothing if it is sealed already."""
        assert self.replicator is not None
        if self.fence.sealed == self.version:
            self.check()
            return
        with self._blocked:
            self.check()
            blob, replicator = self.take_scalars(), self.replicator
            self.fence.seal(lambda version: replicator.seal(version, blob))
            self.page.store("progress", self.page.load("progress") + 1)
        self._blocked.iteration_ended()
        if self._redo_until is not None and self.version >= self._redo_until:
            self._redo_until = None
            self.link.send("redone", rank=self.rank, epoch=self.epoch, version=self.version, at=time.time())
            assert self.registry is not None
            self.registry.give_back()
        if self.version == 1 and self.rank == 0:
            self.link.send(
                "preload", modules=library_modules(), calls=self.preload_calls, environ=changed_environment()
            )

    # ---- failure ----------------------------------------------------------------------------------------------------

    def halt(self, epoch: int) -> None:
        """Watchdog thread: stop everything that touches state, and say what the live tensors hold."""
        version, sealed = self.fence.halt(epoch, lambda: self._abort_groups(epoch))
        # Asked before the groups are aborted: a step that waits on the device for a collective will never be whole.
        if version >= 0 and self.replicator is not None and not self.replicator.step_ended(version):
            version, sealed = -1, False
            self.fence.never_whole()  # a second halt cannot ask again: the abort ends the wait, the cancel forgets it
        self._abort_groups(epoch)
        if self.replicator is not None:
            self.replicator.cancel()
        self.link.send("halted", epoch=epoch, version=-1 if self.is_newcomer else version, sealed=sealed)
        self.inbox.poke()

    def _abort_groups(self, epoch: int) -> None:
        if self.registry is not None:
            self.registry.halt(epoch)

    def recover(self, interrupt: FailoverInterrupt) -> int:
        """In a survivor, outside any `except` that still holds the traceback: back to a common version. Returns v*."""
        if not self.training:
            raise FailoverError("recover() before start_training()") from interrupt
        interrupted = self.fence.sealed + 1
        version = self._recovery.survive()
        self._redo_until = max(version + 1, interrupted)
        self._blocked.iteration_dropped()
        return version

    def resumed_as_newcomer(self, version: int) -> None:
        """Called by Recovery when a newcomer has taken its place."""
        self._redo_until = version + 1

    def finish(self) -> None:
        """The training loop is over on this rank: wait until every rank's last version is committed. May raise
        FailoverInterrupt."""
        if not self.training:
            return
        assert self.replicator is not None
        self.seal()
        replicator = self.replicator
        if replicator.newest != self.version:  # not scheduled by the interval, but the last one is always kept
            self._gate.wait_copied()
            self._gate.wait_committed(replicator.newest)  # or both slots would be needed
            self.fence.resume(self.version, replicator.recommit)
        epoch, version, stats = self.epoch, self.version, rank_stats(self._blocked, replicator.stats())
        self.link.send("leaving", rank=self.rank, epoch=epoch, version=version, stats=stats)
        self.inbox.take("may_leave", lambda m: bool(m["epoch"] == epoch and m["version"] == version), self.check)

    # ---- fault injection and reports --------------------------------------------------------------------------------

    def inject(self, at: str, iteration: int | None = None) -> None:
        """Training has reached the point `at` of the running iteration (or of `iteration`): a due injected fault
        happens here."""
        if iteration is None:
            iteration = self.version if at == "after-step" else self.version + 1
        self._faults.point(at, iteration)

    def persisted(self, path: str, version: int) -> None:
        """A checkpoint of `version` was saved to disk at `path`; an unrecoverable loss will name it."""
        self.link.send("persisted", rank=self.rank, path=str(path), version=version)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called when the script has ended well: for a trainer whose loop does not say that it is
        over. What it raises ends the process as if the script had raised it."""
        self._at_end.append(callback)

    def script_ended(self) -> None:
        """The script has ended well: see at_end()."""
        for callback in self._at_end:
            callback()

    def close(self) -> None:
        """The process ends: join the engine's threads and the one that may still connect to the store."""
        if self.registry is not None:
            self.registry.client.close()
        if self.replicator is not None:
            self.replicator.close()
