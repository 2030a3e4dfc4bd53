"""What the hooks of every adapter have in common: the one protection of the process, and the way around it.

An adapter has one `Guard`. The adapter asks it for the session to protect with, and gives it the protection that it has
made. It wraps the framework's functions in guarded hooks. Without a protection the framework's own code runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from logging import Logger
from typing import Any, Generic, TypeVar

from ff_core.errors import UnsupportedError
from ff_core.worker import session
from ff_core.worker.session import Session

P = TypeVar("P")
_ATTRIBUTE = "_ff_protection"


class Guard(Generic[P]):
    """At most one protection (whatever an adapter calls that) lives in a process.

    log: the adapter's.  asked: a clause that says how the job asked for protection.  unasked: a sentence for a job that
    `fftrain run` started and that did not ask.  second: the sentence for who asks twice; without one the
    adapter looks itself.
    """

    def __init__(self, log: Logger, *, asked: str, unasked: str, second: str | None = None) -> None:
        self._log, self._unasked, self._second = log, unasked, second
        self.unprotected = (
            f"THIS JOB IS NOT PROTECTED: {asked}, but the job was not started by `fftrain run`. "
            "It trains as without FFTrainer; start it with `fftrain run ...` to survive failures."
        )
        self._warned = False
        self._protection: weakref.ReferenceType[Any] | None = None

    def not_asked(self) -> None:
        """The job's settings do not switch protection on: say so where somebody may expect it."""
        if session.current() is not None:
            self._log.warning("%s", self._unasked)

    def session(self) -> Session | None:
        """The session to protect with. None, said once, if `fftrain run` did not start this process.

        Raises UnsupportedError if this process has a protection already and `second` was given.
        """
        mine = session.current()
        if mine is None:
            if not self._warned:
                self._warned = True
                self._log.warning("%s", self.unprotected)
            return None
        if self._second is not None and self.current() is not None:
            raise UnsupportedError(self._second)
        return mine

    def hold(self, protection: P, by: Any) -> None:
        """`protection` is this process's one, and lives as long as `by`."""
        setattr(by, _ATTRIBUTE, protection)
        self._protection = weakref.ref(protection)

    def of(self, by: Any) -> P | None:
        """The protection that `by` holds, None if it holds none."""
        found: P | None = vars(by).get(_ATTRIBUTE)
        return found

    def current(self) -> P | None:
        """The protection of this process, None if there is none (any more)."""
        return None if self._protection is None else self._protection()

    def forget(self) -> None:
        """Another job begins in this process: tests do that."""
        self._protection = None

    def guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """For `ff_core.worker.hooks.wrap`: hook(protection, original, *args, **kwargs) while there is a protection."""

        def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            found = self.current()
            return original(*args, **kwargs) if found is None else hook(found, original, *args, **kwargs)

        return around

    def guarded_method(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The same for methods of an object that holds the protection: hook(protection, original, object, ...)."""

        def around(original: Callable[..., Any], by: Any, *args: Any, **kwargs: Any) -> Any:
            found = self.of(by)
            return original(by, *args, **kwargs) if found is None else hook(found, original, by, *args, **kwargs)

        return around
