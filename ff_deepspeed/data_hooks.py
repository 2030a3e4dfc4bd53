"""Makes the iterators of data loaders `Tracked`: torch's DataLoader and DeepSpeed's own."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ff_core.state import spaces
from ff_core.state.iterators import OfIterators
from ff_core.state.source import is_fetching, is_persistent
from ff_deepspeed import kept_processes, protection
from ff_deepspeed.tracked import Tracked

_numbers = itertools.count()
_inner = False  # DeepSpeed's loader makes a torch DataLoader of its own in every epoch


def install() -> None:
    """Once per process, after deepspeed has been imported."""
    from deepspeed.runtime.dataloader import DeepSpeedDataLoader
    from torch.utils.data import DataLoader

    spaces.more.append(OfIterators)
    for loader in (DataLoader, DeepSpeedDataLoader):
        loader.__init__ = _numbered(loader.__init__)  # type: ignore[method-assign]
        loader.__iter__ = _tracked(loader.__iter__)  # type: ignore[method-assign]
    for name in ("_create_dataloader", "__next__"):
        setattr(DeepSpeedDataLoader, name, _as_inner(getattr(DeepSpeedDataLoader, name)))


def _numbered(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not _inner:
            self._ff_number = next(_numbers)

    return init


def _tracked(original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(original)
    def iterate(self: Any) -> Iterator[Any]:
        number = getattr(self, "_ff_number", None)
        found = protection.current()
        if _inner or number is None:
            return original(self)
        if found is not None and found.loop.used and is_fetching():
            return original(self)
        if found is not None and found.loop.used and is_persistent(self):
            return kept_processes.items(self, lambda: original(self))
        kept_processes.catch_up(self, lambda: original(self))
        tracked = Tracked(number, self, lambda: original(self), _ask, _trains)
        if not protection.is_newcomer():
            tracked.source.begin()  # as the loader itself would; a newcomer begins where its rank was
        return tracked

    return iterate


def _ask(tracked: Tracked) -> Any:
    found = protection.current()
    if found is None or found.loop.used:  # an iterator from before the exact loop began
        return tracked.source.next()
    return found.unmodified.next(tracked)


def _trains(tracked: Tracked) -> bool:
    found = protection.current()
    return found is not None and found.unmodified.trains_on(tracked)


def _as_inner(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _inner
        before, _inner = _inner, True
        try:
            return original(self, *args, **kwargs)
        finally:
            _inner = before

    return inside
