"""What is closed when a `with` block ends, and the engine's objects among them."""

from __future__ import annotations

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from ff_core.copy.binding import check
from ff_core.errors import EngineError

T = TypeVar("T", bound="Handle")


class Handle(ABC):
    """Is closed when the `with` block that it opens ends."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it has. Idempotent."""

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineHandle(Handle):
    """An object of the engine that has threads. It is closed before the interpreter ends, for then Python frees the
    memory that the threads use. After a fork the child's copy is dead.
    """

    def __init__(
        self, name: str, handle: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], int], after: Callable[[], None]
    ) -> None:
        """name: for messages.  free: the engine's function that closes it.  after: is called when it is closed; keeps
        alive what the threads use.
        """
        self._name = name
        self._pid = os.getpid()
        self._handle = handle.value
        self._closer = weakref.finalize(self, _close, handle, free, after, self._pid)

    @property
    def is_open(self) -> bool:
        """Neither closed nor a forked child's copy."""
        return self._handle is not None and self._closer.alive and os.getpid() == self._pid

    def _open(self) -> int:
        """The engine's address of it. EngineError: it is not open."""
        if self._handle is None:
            raise EngineError(f"the {self._name} is closed")
        if os.getpid() != self._pid:
            raise EngineError(f"the {self._name} belongs to the parent process: a forked child cannot use it")
        return self._handle

    def close(self) -> None:
        """End its threads and free it. Idempotent; in a forked child it does nothing."""
        self._handle = None
        self._closer()


def _close(
    handle: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], int], after: Callable[[], None], pid: int
) -> None:
    if os.getpid() == pid:
        check(free(handle))
        after()
