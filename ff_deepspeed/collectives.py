"""The collectives that a script calls itself: made by an unmodified loop, and made again after a failure.

An unmodified loop that is interrupted in one of them (the mean of the loss, a barrier, a gathered metric) must go on
from there. The groups tell of every operation (`ff_core.comm.Listener`); those that DeepSpeed's own calls make go
straight through. An asynchronous collective is completed before it returns, so that there is no moment at which only a
work handle knows of it. A send or a receive cannot be: the peer may wait for a later one first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_deepspeed import protection

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_deepspeed.unmodified import Unmodified


def install(registry: GroupRegistry) -> None:
    """The groups of this process tell of the script's operations from now on."""
    registry.listener = Script()


class Script:
    """`ff_core.comm.Listener` for the engine that is protected now, if there is one."""

    @property
    def listening(self) -> bool:
        found = protection.current()
        return found is not None and found.unmodified.listening

    def make(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        loop = self._loop()
        return loop.call(function, args, kwargs, writes=True, alone=loop.refuse_alone)

    def launch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._loop().launch(function, args, kwargs)

    def leaving(self) -> None:
        found = protection.current()
        if found is not None:
            found.unmodified.end()

    @staticmethod
    def _loop() -> Unmodified:
        found = protection.current()
        assert found is not None, "asked for after `listening`"
        return found.unmodified
