"""The collectives that a script calls itself: made by an unmodified loop, and made again after a failure.

An unmodified loop that is interrupted in one of them (the mean of the loss, a barrier, a gathered metric) must go on
from there. The groups tell of every operation (`ff_core.comm.Listener`); those that DeepSpeed's own calls make go
straight through. An asynchronous collective is completed before it returns, so that there is no moment at which only a
work handle knows of it. A send or a receive cannot be: the peer may wait for a later one first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.errors import UnsupportedError
from ff_core.state import source
from ff_deepspeed import boundary, protection

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_deepspeed.unmodified import Unmodified


IN_LOADER = (
    "{name}() is called within the data loader, or the generator, that the training loop takes its batches from. The "
    "replacement of a dead rank goes through its data by itself, so nobody would answer it. Make the collective in the "
    "body of the loop (in the exact loop: inside `with ff_deepspeed.iteration():`) or before the loop; what ranks only "
    "have to agree on, a seed say, they can derive from the number of the epoch. For a loader that accelerate has "
    "prepared: give the torch DataLoader itself, with a DistributedSampler, to ff_deepspeed.batches()"
)


IN_LOSS = (
    "{name}() is called in the backward pass of a loss that the script computes itself from what engine(...) returned. "
    "That part is not run again after a failure, but a replacement would run it, and nobody would answer its "
    "collective. Compute the loss in the model, so that engine(...) returns it; or use the exact loop: "
    "`for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` inside"
)


def install(registry: GroupRegistry) -> None:
    """The groups of this process tell of the script's operations from now on."""
    registry.listener = Script()


class Script:
    """`ff_core.comm.Listener` for the engine that is protected now, if there is one."""

    @property
    def listening(self) -> bool:
        found = protection.current()
        if found is None:
            return False
        return source.is_fetching() or found.unmodified.listening or boundary.in_own_loss()

    def make(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        loop = self._loop(function)
        return loop.call(function, args, kwargs, writes=True, alone=loop.refuse_alone)

    def launch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._loop(function).launch(function, args, kwargs)

    def leaving(self) -> None:
        found = protection.current()
        if found is not None:
            found.unmodified.end()

    @staticmethod
    def _loop(function: Callable[..., Any]) -> Unmodified:
        """Raises UnsupportedError for a call of `function` that nobody would answer."""
        found = protection.current()
        assert found is not None, "asked for after `listening`"
        words = IN_LOADER if source.is_fetching() else IN_LOSS if boundary.in_own_loss() else None
        if words is not None:
            given: Any = getattr(function, "args", ())  # (group, operation), of an operation that a group leads here
            name = given[1] if len(given) > 1 else getattr(function, "__name__", "a collective")
            raise found.fail(UnsupportedError(words.format(name=name)))
        return found.unmodified
