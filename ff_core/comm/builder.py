"""Building inner groups in parallel, and walking away from those that will never connect.

Each builder thread has a store client of its own (one that blocks in a wait is busy for everybody else) and takes the
groups in the order of their keys. That order is the same on all ranks, and this is why a bounded number of threads
cannot deadlock although ranks own different groups: the first unbuilt group of the job is in work at all its members.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from .inner import build_inner
from .sockets import GroupSockets
from .spec import GroupSpec

if TYPE_CHECKING:
    from .host import CommHost

BUILDERS = 8  # threads, and store clients, at most
POLL_S = 0.02  # how often the waiting thread looks for a newer halt


class Batch:
    """Groups that are being connected: what is left to do, what is done, what went wrong."""

    def __init__(self, specs: Sequence[GroupSpec]) -> None:
        self.todo = sorted(specs, key=lambda spec: spec.key, reverse=True)  # popped from the end
        self.left = len(self.todo)
        self.built: dict[str, dist.ProcessGroup] = {}
        self.error: BaseException | None = None
        self.abandoned = False
        self.changed = threading.Condition()

    def wait(self, interrupted: Callable[[], None]) -> dict[str, dist.ProcessGroup]:
        """The connected groups by `GroupSpec.key`, when all are.

        Raises what `interrupted` raises, at once, or the first builder's error. Builders that are stuck then are left
        alone: they end with their timeouts and their results are dropped.
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

    def done(self, spec: GroupSpec, group: dist.ProcessGroup) -> None:
        with self.changed:
            if not self.abandoned:
                self.built[spec.key] = group
            self.left -= 1
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def abandon(self) -> None:
        """Nobody waits any more: what is still being connected will be dropped."""
        with self.changed:
            self.abandoned = True
            self.todo.clear()
            self.built.clear()


class Builder:
    """Builds the groups of one process."""

    def __init__(self, host: CommHost, sockets: GroupSockets) -> None:
        self._host = host
        self._sockets = sockets
        self._idle: list[dist.Store] = []  # clients for the next batch; one in an abandoned builder never returns
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

    def close(self) -> None:
        """Drops the idle store clients."""
        with self._lock:
            self._idle.clear()

    def _work(self, batch: Batch, epoch: int, connect_timeout: timedelta) -> None:
        spec = batch.take()
        if spec is None:
            return
        try:
            client = self._client()
            while spec is not None:
                self._publish(client, spec, epoch)
                store = dist.PrefixStore(f"ff/{epoch}/{spec.key}", client)
                group = build_inner(spec, store, self._sockets, connect_timeout)
                self._learn(client, spec, epoch)
                batch.done(spec, group)
                del group
                spec = batch.take()
        except Exception as error:
            batch.fail(error)
            return
        with self._lock:
            self._idle.append(client)

    def _client(self) -> dist.Store:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._host.connect_store()

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

    def _learn(self, client: dist.Store, spec: GroupSpec, epoch: int) -> None:
        if "gloo" not in spec.devices.values():
            return
        for rank in spec.ranks:
            with self._lock:
                if rank in self._known.get(epoch, ()):
                    continue
            addresses = json.loads(client.get(f"ff/{epoch}/listener/{rank}"))
            self._sockets.set_peer(rank, [(str(host), int(port)) for host, port in addresses])
            with self._lock:
                self._known.setdefault(epoch, set()).add(rank)
