"""The optimizer's step, with a copy of the next version afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession


def protect(optimizer: Any, session: AdapterSession) -> None:
    """From now on every `optimizer.step()` makes a version, also one that is skipped."""
    optimizer.step = functools.partial(_step, session, optimizer.step)


def _step(session: AdapterSession, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with session.step():
        session.inject("step")
        result = original(*args, **kwargs)
    session.inject("after-step")
    return result
