"""One connection per process to the job's store, shared by everybody who needs it.

A new connection may take seconds at the worst moment (torch looks up the peer's name: a slow name server is enough), so
recovery opens none. What makes sharing possible is that nobody blocks on the connection: waiting is polling. Polling
also lets a rendezvous be abandoned at once when its epoch is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from .host import CommHost

POLL_MIN_S, POLL_MAX_S = 0.0002, 0.01
STORE_TIMEOUT_S = 300.0  # torch's own default
_RENDEZVOUS_TIMEOUT = timedelta(seconds=STORE_TIMEOUT_S)  # of a `get` that names none
_EARLY_TIMEOUT_S = 2.0


class StoreClient:
    """The shared connection, opened in the background as early as possible."""

    def __init__(self, host: CommHost) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._store: dist.Store | None = None
        self._early: threading.Thread | None = None

    def connect_early(self) -> None:
        """Begins to connect. A failure is not reported here: the first use tries again."""

        def connect() -> None:
            try:
                self.get(_EARLY_TIMEOUT_S)
            except Exception:  # the first use meets it again, in a thread that can report it
                return

        self._early = threading.Thread(target=connect, name="ff-store", daemon=True)
        self._early.start()

    def get(self, timeout_s: float = STORE_TIMEOUT_S) -> dist.Store:
        """The connected store. Never block on it: others use it too. Raises what `connect_store` raises."""
        with self._lock:
            if self._store is None:
                self._store = self._host.connect_store(timeout_s)
            return self._store

    def moved(self, host: str, port: int) -> None:
        """The store is at `host`:`port`; what it held elsewhere is gone."""
        with self._lock:
            if self._host.store_is_at(host, port):
                self._store = None

    def another(self) -> dist.Store:
        """A connection of the caller's own, for those whose C++ blocks on it from threads of its own (NCCL)."""
        return self._host.connect_store(STORE_TIMEOUT_S)

    def close(self) -> None:
        """Drops the connection; the next use opens another.

        Waits for an early attempt that is under way (two seconds at most): a script that ends at once must not tear
        the interpreter down under torch's C++.
        """
        if self._early is not None:
            self._early.join()
        with self._lock:
            self._store = None


def wait_for_keys(store: dist.Store, keys: Sequence[str], timeout: timedelta, interrupted: Callable[[], Any]) -> None:
    """Polls until all of `keys` exist. Raises DistStoreError as torch does, or what `interrupted` raises."""
    deadline, pause = time.monotonic() + timeout.total_seconds(), POLL_MIN_S
    while not store.check(list(keys)):
        interrupted()
        if time.monotonic() > deadline:
            milliseconds = int(timeout.total_seconds() * 1000)
            raise dist.DistStoreError(f"wait timeout after {milliseconds}ms, keys: {', '.join(keys)}")
        time.sleep(pause)
        pause = min(2 * pause, POLL_MAX_S)


class RendezvousStore(dist.Store):
    """What a gloo group connects through: keys of the shared client under `prefix`.

    interrupted: raises when the rendezvous has become pointless. Must be kept alive as long as torch's C++ may use it.
    """

    def __init__(self, client: dist.Store, prefix: str, interrupted: Callable[[], None]) -> None:
        super().__init__()
        self.prefix = prefix
        self._inner = dist.PrefixStore(prefix, client)
        self._interrupted = interrupted

    def set(self, key: str, value: Any) -> None:
        self._inner.set(key, value)

    def get(self, key: str) -> bytes:
        wait_for_keys(self._inner, [key], _RENDEZVOUS_TIMEOUT, self._interrupted)
        return self._inner.get(key)

    def wait(self, keys: Sequence[str], timeout: timedelta = _RENDEZVOUS_TIMEOUT) -> None:
        wait_for_keys(self._inner, keys, timeout, self._interrupted)

    def check(self, keys: Sequence[str]) -> bool:
        return self._inner.check(list(keys))

    def add(self, key: str, amount: int) -> int:
        return self._inner.add(key, amount)

    def append(self, key: str, value: Any) -> None:
        self._inner.append(key, value)  # type: ignore[attr-defined]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        self.wait(keys)
        return [self._inner.get(key) for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            self._inner.set(key, value)

    def delete_key(self, key: str) -> bool:
        return self._inner.delete_key(key)

    def has_extended_api(self) -> bool:
        return True

    deleteKey = delete_key  # the name under which torch's C++ looks for it
