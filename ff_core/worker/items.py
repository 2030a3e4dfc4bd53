"""What an exact loop hands out, and what counts it on the way to the script: `enumerate()` and the like."""

from __future__ import annotations

import dis
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Generic, TypeVar

from ff_core.state import counting

T = TypeVar("T")
_GET_ITER = dis.opmap["GET_ITER"]  # of `for item in items:`; a call of enumerate() is another instruction
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Items(Iterator[T], Generic[T]):
    """make: gives the iterator behind it; gets a reference, as the items must end when the script lets go of them."""

    def __init__(self, make: Callable[[weakref.ReferenceType[Items[T]]], Iterator[T]]) -> None:
        self._loops: list[bool] = []  # each time that somebody began to ask: whether it was a loop
        self._of = make(weakref.ref(self))

    def __iter__(self) -> Items[T]:
        frame = sys._getframe(1)
        self._loops.append(frame.f_code.co_code[frame.f_lasti] == _GET_ITER)
        return self

    def __next__(self) -> T:
        return next(self._of)

    def count(self, by: int) -> None:
        """So many items count, more or less, for who asks for them right now. Raises counting.Unmovable."""
        if by and not self._is_asked_by_a_loop(sys._getframe(1)):
            counting.move(self, by)

    def _is_asked_by_a_loop(self, frame: FrameType | None) -> bool:
        """Directly, and by no generator, around which something could count: all objects of the process would have to
        be gone through to find that, while a whole job waits."""
        if self._loops != [True]:
            return False
        while frame is not None and frame.f_code is not _NEXT_CODE:
            frame = frame.f_back
        while frame is not None:
            if frame.f_code.co_flags & _GENERATORS:
                return False
            frame = frame.f_back
        return True


_NEXT_CODE = Items.__next__.__code__
