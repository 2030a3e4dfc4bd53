"""The default store of the job, as `_get_default_store()` and the rendezvous give it: its connection can be replaced.

Keys live under a prefix of their epoch: what an interrupted iteration left half done (barrier counters, say) cannot
confuse its repetition. In a solo process it talks to nobody: answers come from the init journal, and what the script
sets itself stays local. Waiting is polling, so that a halt can interrupt it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from ff_core.errors import JournalMismatch

from .client import POLL_MAX_S, wait_for_keys
from .era import Era
from .sites import call_site

if TYPE_CHECKING:
    from .client import StoreClient
    from .journal import Journal


class Origin(Era, Protocol):
    """The origin, as far as a store asks it."""

    @property
    def client(self) -> StoreClient: ...

    @property
    def journal(self) -> Journal: ...

    def failed(self, error: BaseException, epoch: int | None) -> None:
        """The store could not be reached: raises FailoverInterrupt if that belongs to a failover."""


def _key_text(keys: Sequence[str]) -> str:
    return ",".join(keys)


class SwappableStore(dist.Store):
    """A `dist.Store` of generation after generation. `number`: which rendezvous of this process it came from."""

    def __init__(self, origin: Origin, number: int, timeout: timedelta) -> None:
        super().__init__()
        self._origin = origin
        self._number = number
        self._limit = timeout
        self._inner: dist.Store | None = None

    def drop(self) -> None:
        """Ends the generation; the next use connects anew."""
        self._inner = None

    def _live(self) -> dist.Store:
        origin = self._origin
        if origin.over:
            raise origin.interrupt()
        inner = self._inner
        if inner is None:
            if origin.solo:
                inner = dist.HashStore()
            else:
                inner = dist.PrefixStore(f"ff/{origin.epoch()}/store/{self._number}", origin.client.get())
            self._inner = inner
        return inner

    def _ask(self, ask: Callable[[dist.Store], Any]) -> Any:
        """`ask(inner)`. Where the store has died with its launcher, another launcher's is connected to after a halt."""
        inner = self._live()
        try:
            return ask(inner)
        except dist.DistNetworkError as error:
            self._origin.failed(error, None)
            raise

    def _answer(self, op: str, key: str, ask: Callable[[dist.Store], Any]) -> Any:
        """`ask(inner)`, recorded; or the recorded answer."""
        inner, journal = self._live(), self._origin.journal
        if not journal.replaying:
            return journal.store_result(op, key, self._ask(ask))
        found, result = journal.stored(op, key)
        if found:
            return result
        if op in ("get", "wait", "check", "multi_get") and all(inner.check([name]) for name in key.split(",")):
            return ask(inner)  # set by this process itself
        raise JournalMismatch(
            f"store.{op}({key!r}) at {call_site()[0]}: the rank that this process replaces did not ask for it "
            "before training began"
        )

    def _wait_for(self, inner: dist.Store, keys: Sequence[str], timeout: timedelta) -> None:
        def interrupted() -> None:
            self._live()
            if self._origin.solo:
                raise dist.DistStoreError(f"store key {_key_text(keys)!r} was set by no one, and this process is alone")

        wait_for_keys(inner, keys, timeout, interrupted)

    # ---- dist.Store ---------------------------------------------------------------------------------------------

    def set(self, key: str, value: Any) -> None:
        self._ask(lambda inner: inner.set(key, value))

    def get(self, key: str) -> bytes:
        def ask(inner: dist.Store) -> bytes:
            self._wait_for(inner, [key], self._limit)
            return inner.get(key)

        return self._answer("get", key, ask)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._answer("wait", _key_text(keys), lambda inner: self._wait_for(inner, keys, timeout or self._limit))

    def check(self, keys: Sequence[str]) -> bool:
        return self._answer("check", _key_text(keys), lambda inner: inner.check(list(keys)))

    def add(self, key: str, amount: int) -> int:
        return self._answer("add", key, lambda inner: inner.add(key, amount))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return self._answer("compare_set", key, lambda inner: inner.compare_set(key, expected, desired))

    def append(self, key: str, value: Any) -> None:
        self._ask(lambda inner: inner.append(key, value))  # type: ignore[attr-defined]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        def ask(inner: dist.Store) -> list[bytes]:
            self._wait_for(inner, keys, self._limit)
            return [inner.get(key) for key in keys]

        return self._answer("multi_get", _key_text(keys), ask)

    def multi_set(self, keys: Sequence[str], values: Sequence[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete_key(self, key: str) -> bool:
        return self._answer("delete_key", key, lambda inner: inner.delete_key(key))

    def num_keys(self) -> int:
        return self._answer("num_keys", "", lambda inner: inner.num_keys())

    def list_keys(self) -> list[str]:
        return self._answer("list_keys", "", lambda inner: inner.list_keys())

    def queue_push(self, key: str, value: Any) -> None:
        self._ask(lambda inner: inner.queue_push(key, value))

    def queue_len(self, key: str) -> int:
        return self._answer("queue_len", key, lambda inner: inner.queue_len(key))

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        def ask(inner: dist.Store) -> bytes:
            deadline = time.monotonic() + self._limit.total_seconds()
            while block and not inner.queue_len(key) and time.monotonic() < deadline:
                self._live()
                time.sleep(POLL_MAX_S)
            return inner.queue_pop(key, False)

        return self._answer("queue_pop", key, ask)

    def has_extended_api(self) -> bool:
        return True

    def set_timeout(self, timeout: timedelta) -> None:
        super().set_timeout(timeout)
        self._limit = timeout

    def clone(self) -> SwappableStore:
        return self

    # The names under which torch's C++ looks for two of them.
    deleteKey = delete_key
    getNumKeys = num_keys
