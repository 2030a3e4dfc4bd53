"""Building inner groups in parallel, and walking away from those that will never connect.

Builder threads take the groups in the order of their keys. That order is the same on all ranks. So the first unbuilt
group of the job is in work at all its members. This is why a bounded number of threads cannot deadlock, although ranks
own different groups.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from . import nccl
from .client import RendezvousStore, StoreClient, wait_for_keys
from .inner import build_inner
from .sockets import GroupSockets
from .spec import GroupSpec

BUILDERS = 8  # threads, at most
POLL_S = 0.02  # how often the waiting thread looks for a newer halt


class Built(NamedTuple):
    """A connected group, and the store that its C++ side refers to."""

    group: dist.ProcessGroup
    store: dist.Store


class Batch:
    """Groups that are being connected: what is left to do, what is done, what went wrong."""

    def __init__(self, specs: Sequence[GroupSpec]) -> None:
        self.todo = sorted(specs, key=lambda spec: spec.key, reverse=True)  # popped from the end
        self.left = len(self.todo)
        first = self.todo[-1] if self.todo else None
        names = first is not None and nccl.is_in(first) and first.rank == first.global_rank
        self._naming = first.key if first is not None and names else None
        self.built: dict[str, Built] = {}
        self.error: BaseException | None = None
        self.abandoned = False
        self.changed = threading.Condition()

    def wait(self, interrupted: Callable[[], None]) -> dict[str, Built]:
        """The connected groups by `GroupSpec.key`, when all are.

        Raises what `interrupted` raises, at once, or the first builder's error. Builders that are at work then are left
        alone: they end within their timeouts (those that wait for a peer to appear: soon), and the results are dropped.
        """
        try:
            with self.changed:
                while self.left and self.error is None:
                    self.changed.wait(POLL_S)
                    interrupted()
                if self.error is not None:
                    raise self.error
                built, self.built = self.built, {}
                return built
        except BaseException:
            self.abandon()
            raise

    def take(self) -> GroupSpec | None:
        with self.changed:
            return None if self.abandoned or self.error or not self.todo else self.todo.pop()

    def done(self, spec: GroupSpec, built: Built) -> None:
        with self.changed:
            if not self.abandoned:
                self.built[spec.key] = built
            self.left -= 1
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def check(self) -> None:
        """Raises RuntimeError in a builder that nobody waits for any more."""
        if self.abandoned or self.error is not None:
            raise RuntimeError("rendezvous abandoned: its epoch is over")

    def wait_for_name(self, spec: GroupSpec) -> None:
        """Until the process's first NCCL group exists, if `spec` is another one: the process is named after the first.

        Raises as `check`. The first is the first in order, so it is in work at all its members: no deadlock.
        """
        if self._naming in (None, spec.key) or not nccl.is_in(spec):
            return
        while not nccl.made.wait(POLL_S):
            self.check()

    def abandon(self) -> None:
        """Nobody waits any more: what is still being connected will be dropped."""
        with self.changed:
            self.abandoned = True
            self.todo.clear()
            self.built.clear()


class Builder:
    """Builds the groups of one process."""

    def __init__(self, client: StoreClient, sockets: GroupSockets) -> None:
        self._client = client
        self._sockets = sockets
        self._known: dict[int, set[int]] = {}  # epoch -> ranks whose listeners were learnt in it
        self._lock = threading.Lock()

    def start(self, specs: Sequence[GroupSpec], epoch: int, connect_timeout: timedelta) -> Batch:
        """Begins to connect all of `specs` under keys of `epoch`; returns at once."""
        batch = Batch(specs)
        for index in range(min(BUILDERS, len(specs))):
            name = f"ff-build-{epoch}-{index}"
            work = threading.Thread(target=self._work, args=(batch, epoch, connect_timeout), name=name, daemon=True)
            work.start()
        return batch

    def _work(self, batch: Batch, epoch: int, connect_timeout: timedelta) -> None:
        spec = batch.take()
        try:
            while spec is not None:
                batch.wait_for_name(spec)
                client = self._client.get()
                self._publish(client, spec, epoch)
                store = RendezvousStore(client, f"ff/{epoch}/{spec.key}", batch.check)
                group = build_inner(spec, store, self._sockets, connect_timeout, self._client.another)
                self._learn(batch, client, spec, epoch, connect_timeout)
                batch.done(spec, Built(group, store))
                del group, store
                spec = batch.take()
        except Exception as error:
            batch.fail(error)

    def _publish(self, client: dist.Store, spec: GroupSpec, epoch: int) -> None:
        """Tells the peers where we listen; before connecting, so that whoever is connected can read it."""
        if "gloo" not in spec.devices.values():
            return
        addresses = json.dumps(self._sockets.own_addresses())
        with self._lock:
            if spec.global_rank in self._known.get(epoch, ()):
                return
        client.set(f"ff/{epoch}/listener/{spec.global_rank}", addresses)
        with self._lock:
            self._known = {epoch: self._known.get(epoch, set()) | {spec.global_rank}}

    def _learn(self, batch: Batch, client: dist.Store, spec: GroupSpec, epoch: int, connect_timeout: timedelta) -> None:
        if "gloo" not in spec.devices.values():
            return
        for rank in spec.ranks:
            with self._lock:
                if rank in self._known.get(epoch, ()):
                    continue
            key = f"ff/{epoch}/listener/{rank}"
            wait_for_keys(client, [key], connect_timeout, batch.check)
            addresses = json.loads(client.get(key))
            self._sockets.set_peer(rank, [(str(host), int(port)) for host, port in addresses])
            with self._lock:
                self._known.setdefault(epoch, set()).add(rank)
