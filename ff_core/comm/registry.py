"""`GroupRegistry`: all groups of a process, and the steps that carry them from one epoch to the next.

    halt(epoch)      any thread: whatever hangs in a collective gets free and raises FailoverInterrupt
    wait_quiet(epoch), drop()  main thread: what is under way ends; the old connections are closed, in the background
    make_late_groups(list)  main thread, on every rank: the same groups everywhere
    regroup(epoch)   main thread: every group is connected anew, in parallel

The group objects stay; so do the default store and everything that holds them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ff_core.errors import FailoverInterrupt, judged

from .barrier import BarrierDevices
from .builder import Batch, Builder, Built
from .client import StoreClient
from .closing import Closer
from .cut import Cut
from .generation import Generation
from .group import SwappableGroup
from .journal import Journal
from .late import LateGroups
from .patches import Patches
from .sites import call_site
from .sockets import GroupSockets
from .solo import SoloGroup
from .store import SwappableStore
from .whole import WholeGroup

if TYPE_CHECKING:
    from .host import CommHost
    from .listener import Listener
    from .spec import GroupSpec

CLOSE_S = 10.0  # closing a group that the user destroys, when nobody has died, takes milliseconds
_ABORT_S = 5.0  # an abort of NCCL takes half a second
CONNECT_TIMEOUT = timedelta(seconds=60)  # for regrouping, where every rank is known to be ready


class GroupRegistry:
    """One per process, made by `install`. `halted_epoch`: of a halt that was not regrouped yet; `solo`: alone."""

    def __init__(self, host: CommHost, *, solo: bool, replay: bytes | None) -> None:
        self.host = host
        self.solo = solo
        self.halted_epoch: int | None = None
        self.journal = Journal(record=not solo, data=replay)
        self.barriers = BarrierDevices()
        self.whole = WholeGroup()
        self.late = LateGroups(self.journal, self.groups)
        self._patches = Patches(self)
        self._sockets = GroupSockets()
        self.client = StoreClient(host)
        self._builder = Builder(self.client, self._sockets)
        self.cut = Cut()
        self._lock = threading.RLock()
        self._groups: list[weakref.ref[SwappableGroup]] = []
        self._names: dict[str, int] = {}
        self._stores: list[SwappableStore] = []
        self._connected_epoch: int | None = None if solo else host.epoch
        self._closer = Closer()
        self.noted: BaseException | None = None  # by note_failure, until it is known what it means
        self._connecting = -1 if solo else host.epoch  # the newest epoch that groups were or are being connected in
        self._preparing = False
        self.uninstalled = False
        self.listener: Listener | None = None  # set by an adapter whose training loop is the script's own

    # ---- state --------------------------------------------------------------------------------------------------

    @property
    def connected_epoch(self) -> int | None:
        """The epoch of the live inner groups; None in a solo process and between drop() and regroup()."""
        return self._connected_epoch

    def epoch(self) -> int:
        """The epoch that new groups and store connections belong to."""
        return self._connected_epoch if self._connected_epoch is not None else self.host.epoch

    def groups(self) -> list[SwappableGroup]:
        """Every group that this process is a member of and has not destroyed, in order of creation."""
        with self._lock:
            alive = [group for group in (ref() for ref in self._groups) if group is not None and not group.closed]
            self._groups = [weakref.ref(group) for group in alive]
            return alive

    def assert_generation(self, epoch: int) -> None:
        """Raises AssertionError unless every live inner group was built in `epoch` (stale gloo groups still work!)."""
        stale = {
            group.spec.name: group.generation.epoch if group.generation is not None else "dropped"
            for group in self.groups()
            if not group.deferred
            and (group.generation is None or group.generation.inner is None or group.generation.epoch != epoch)
        }
        if stale or self._connected_epoch != epoch:
            raise AssertionError(f"connected in epoch {self._connected_epoch}, expected {epoch}; stale groups: {stale}")

    @property
    def over(self) -> bool:
        """Whether a halt has ended the generation. A solo process goes on: nothing it does depends on the others."""
        return self.halted_epoch is not None and not self.solo and not self._preparing

    def interrupt(self) -> FailoverInterrupt:
        """The exception for whoever used something of an older generation."""
        return FailoverInterrupt(self.halted_epoch if self.halted_epoch is not None else self.epoch())

    # ---- failures -----------------------------------------------------------------------------------------------

    def failed(self, error: BaseException, epoch: int | None) -> None:
        """An inner operation of `epoch` raised: raises FailoverInterrupt if that belongs to a failover."""
        if not self.over and isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            self.host.on_failure(error, call_site()[0])
            self.noted = None
        if self.over or (epoch is not None and epoch != self._connected_epoch):
            raise self.interrupt()

    def note_failure(self, error: BaseException) -> None:
        """An operation that only C++ waits for has failed; its error will surface elsewhere, as a RuntimeError."""
        self.noted = error

    # ---- creation -----------------------------------------------------------------------------------------------

    def new_key(self, name: str) -> str:
        """A key for a group that torch calls `name`: unique in this process, the same on all members."""
        with self._lock:
            count = self._names.get(name, 0)
            self._names[name] = count + 1
        return name if count == 0 else f"{name}#{count}"

    def new_store(self, timeout: timedelta) -> SwappableStore:
        """The store of the next rendezvous. Kept alive here: torch's C++ holds no reference to the Python object."""
        with self._lock:
            store = SwappableStore(self, len(self._stores), timeout)
            self._stores.append(store)
            return store

    def add_group(self, spec: GroupSpec, store: dist.Store) -> SwappableGroup:
        """Makes and connects a group. Raises FailoverInterrupt while halted, and RuntimeError as torch does."""
        group = SwappableGroup(self, spec, store)
        try:
            self.connect(group)
        except BaseException:
            with self._lock:
                self._names[spec.name] -= 1  # the repetition must get the same key
            raise
        with self._lock:
            self._groups.append(weakref.ref(group))
        return group

    def connect(self, group: SwappableGroup) -> None:
        """Connects one group in the current epoch, as torch does at creation: waits as long as the user's timeout."""
        if self.over:
            raise self.interrupt()
        if self.solo or self._preparing:
            group.generation = Generation(self, SoloGroup(group.spec.rank, group.spec.size), None, None)
            return
        epoch = self.epoch()
        pending, group.pending = group.pending, None
        built = self._finish(pending or self._builder.start([group.spec], epoch, group.spec.timeout), epoch)
        with self._lock:
            if self.over:
                raise self.interrupt()
            group.generation = Generation(self, *built.pop(group.spec.key), epoch)
            group.deferred = False

    def _finish(self, batch: Batch, epoch: int) -> dict[str, Built]:
        def interrupted() -> None:
            announced = self.host.halted()
            if (self.halted_epoch or 0) > epoch or (announced is not None and announced > epoch):
                raise FailoverInterrupt(max(self.halted_epoch or 0, announced or 0))

        def judge(failure: Exception) -> None:
            interrupted()
            self.host.on_failure(failure, f"connecting process groups in epoch {epoch}")
            interrupted()

        return judged(lambda: batch.wait(interrupted), judge)

    def close_group(self, group: SwappableGroup) -> None:
        """The user destroyed `group`: it is closed now and never built again."""
        if not group.closed:
            self.late.destroyed(group)
        group.closed = True
        closing: list[dist.ProcessGroup] = []
        with self._lock:
            self._release(group, closing)
        self._closer.close(closing, wait_s=CLOSE_S)

    # ---- from epoch to epoch ------------------------------------------------------------------------------------

    def halt(self, epoch: int) -> None:
        """Ends every operation of the current generation, pending and later ones. Any thread, any number of times.

        Returns before NCCL's communicators are aborted: that goes on in the background.
        In a solo process, only a regroup() that has begun for an older epoch ends: initialisation goes on.
        A halt that comes late, for the epoch that is being connected already, changes nothing.
        """
        with self._lock:
            if epoch <= self._connecting:
                return
            self.halted_epoch = max(epoch, self.halted_epoch or 0)
            generations = [group.generation for group in self.groups() if group.generation is not None]
            aborting = [inner for inner in (generation.to_abort() for generation in generations) if inner is not None]
        self._sockets.shutdown()
        self.cut.made()
        self._closer.abort(aborting)

    def wait_quiet(self, epoch: int) -> None:
        """Returns when nothing that the halt of `epoch` has ended writes into its tensors any more."""
        self.cut.wait_lost(lambda: (self.halted_epoch or 0) >= epoch)

    def drop(self) -> None:
        """Lets go of every inner group and store connection; they are closed in the background."""
        closing: list[dist.ProcessGroup] = []
        with self._lock:
            for group in self.groups():
                group.remember_timeouts()
                self._release(group, closing)
            for store in self._stores:
                store.drop()
            self._connected_epoch = None
        self._closer.close(closing)

    @staticmethod
    def _release(group: SwappableGroup, into: list[dist.ProcessGroup]) -> None:
        """Ends the group's generation. What is to be closed goes `into` the list, and this frame with its references
        is gone before anybody closes it: see Closer."""
        if group.pending is not None:
            group.pending.abandon()
            group.pending = None
        group.leave_block()
        generation, group.generation = group.generation, None
        inner = generation.release() if generation is not None else None
        if inner is not None:
            into.append(inner)

    def regroup(self, epoch: int) -> None:
        """Connects every group in `epoch`; returns when all are. Not solo from then on.

        Raises FailoverInterrupt when a newer epoch is announced meanwhile, RuntimeError if a peer does not connect.
        """
        with self._lock:
            self._connecting = max(epoch, self._connecting)
            waiting = [group for group in self.groups() if not group.deferred]
        built = self._finish(self._builder.start([group.spec for group in waiting], epoch, CONNECT_TIMEOUT), epoch)
        with self._lock:
            if (self.halted_epoch or 0) > epoch:
                raise self.interrupt()
            self.solo = False
            for group in waiting:
                group.generation = Generation(self, *built.pop(group.spec.key), epoch)
            self._connected_epoch = epoch
            self.noted = None
            self.halted_epoch = None
            self.cut.mended()
            for group in self.groups():
                if group.deferred:
                    group.pending = self._builder.start([group.spec], epoch, group.spec.timeout)

    def give_back(self) -> None:
        """The failover is over: memory that the groups before have left goes back to the system."""
        self._closer.give_back()

    def wait_closed(self) -> None:
        """Returns when the background closing of dropped groups is over."""
        self._closer.wait()

    def close(self) -> None:
        """The process ends: no thread of this package is to be found within torch or NCCL."""
        self.client.close()
        self._closer.wait_aborted(_ABORT_S)

    # ---- groups created after training began --------------------------------------------------------------------

    def freeze_journal(self, state: Iterable[torch.Tensor]) -> bytes:
        """Training starts: `journal.freeze(state)`. Groups created from now on are late groups."""
        return self.journal.freeze(state)

    def late_groups(self) -> list[dict[str, Any]]:
        """Groups created since `journal.freeze()`, as plain values; to be sealed with every version."""
        return self.late.items()

    def make_late_groups(self, wanted: list[dict[str, Any]]) -> None:
        """Brings this process's late groups to `wanted`, the list of the version to go back to. Before regroup().

        A newcomer creates what it lacks; a survivor sets aside what is younger than that version. Both get these
        groups when the script asks for them again. Raises JournalMismatch if the lists do not fit.
        """
        self._preparing = True  # they are connected by regroup(), with all others
        try:
            self.late.rewind(wanted, self._patches.new_group_with_tag)
        finally:
            self._preparing = False

    # ---- installation -------------------------------------------------------------------------------------------

    def uninstall(self) -> None:
        """Takes the patches back and closes everything. For tests: a job never needs it."""
        self._patches.undo()
        self.drop()
        self.wait_closed()
        self.close()
        self.uninstalled = True

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the parent's group sockets."""
        self._sockets.forget_in_child()

    def apply_patches(self) -> None:
        """From now on torch makes swappable groups."""
        self._patches.apply()
