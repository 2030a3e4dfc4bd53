"""What the script of an unmodified loop did since the last versions were sealed, so that it can be done again.

A `Record` is one iteration: the engine calls and the collectives that the script made, in order. Each event holds
what it needs to happen once more: inputs (the tensors themselves, with proof that nobody wrote into them), or the way
from an output of forward to the loss.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ff_core.errors import DifferenceError
from ff_core.state import batch as batches_
from ff_deepspeed import boundary, matching, versions, words
from ff_deepspeed.ambient import Ambient
from ff_deepspeed.outputs import Path, follow, leaves

if TYPE_CHECKING:
    from ff_deepspeed.switches import Switches


class Event:
    """One call of the script. `replay` makes it again, after its surroundings (`ambient`) were put back."""

    ambient: Ambient
    switches: Switches | None = None
    """When the call began; None where it leaves them alone."""
    half = False
    """Interrupted in the middle, it leaves buffers half changed."""

    def obstacle(self) -> str | None:
        """Why it cannot be replayed, None if it can."""
        return None

    def replay(self, engine: Any) -> None:
        raise NotImplementedError


class Forward(Event):
    """engine(*args, **kwargs) in training. Its outputs are known by weak references, so as not to keep the graph."""

    switches: Switches
    half = True

    def __init__(
        self, original: Callable[..., Any], args: Any, kwargs: Any, switches: Switches, ambient: Ambient
    ) -> None:
        self._original = original
        self.switches = switches
        self._inputs = (batches_.share(args), batches_.share(kwargs))
        self._marks = batches_.marks(self._inputs)
        self._is_trained = any(tensor.requires_grad for tensor in batches_.contained(self._inputs))
        self._outputs: list[tuple[Path, weakref.ref[torch.Tensor], int]] = []  # where, what, how often written
        self.ambient = ambient
        self.again: Any = None  # the output of the last replay
        self.watcher: Backward | None = None  # a backward pass that is under way, from a loss of the script's own

    def made(self, output: Any) -> None:
        self._outputs = [(path, weakref.ref(tensor), tensor._version) for path, tensor in leaves(output)]
        me = weakref.ref(self)
        for path, tensor in leaves(output):
            boundary.mark(tensor, partial(_known, me, path), partial(_seen, me, path))

    def path_to(self, loss: torch.Tensor) -> Path | None:
        """Where in the output `loss` is, None if it is not one of its tensors.

        One that the script has written in place, as `loss *= 2`, is a loss of its own, computed from the output.
        """
        return next((path for path, ref, version in self._outputs if ref() is loss and loss._version == version), None)

    def is_of(self, inputs: Any) -> bool:
        """Whether `inputs` (args, kwargs) have the values of this call's."""
        return matching.same(inputs, self._inputs)

    def obstacle(self) -> str | None:
        if self._is_trained:
            return "an input of engine(...) was computed from what the script trains itself"
        return None if batches_.marks(self._inputs) == self._marks else "the script wrote into an input of engine(...)"

    def replay(self, engine: Any) -> None:
        args, kwargs = batches_.share(self._inputs)
        self.switches.put()
        enabled, dtype = self.ambient.autocast
        with torch.autocast(engine.device.type, dtype=dtype, enabled=enabled):
            self.again = self._original(engine, *args, **kwargs)


def _known(forward: weakref.ref[Forward], path: Path) -> tuple[Forward, Path] | None:
    owner = forward()
    return None if owner is None else (owner, path)


def _seen(forward: weakref.ref[Forward], path: Path, gradient: torch.Tensor) -> None:
    owner = forward()
    if owner is not None and owner.watcher is not None:
        owner.watcher.keep(owner, path, gradient)


class Backward(Event):
    """engine.backward(loss) of a loss that is an output of engine(...), or that the script computed from outputs."""

    half = True

    def __init__(
        self, original: Callable[..., Any], loss: torch.Tensor, record: Record, kwargs: Any, ambient: Ambient
    ) -> None:
        self._original = original
        self._kwargs = kwargs
        self.ambient = ambient
        self._forward, self._path = record.forward_of(loss)
        self._first = None if self._forward is None else loss.detach().clone()  # the script may write into it
        self._own: torch.Tensor | None = None  # the script's own loss, until its gradients are known
        self._sources: list[boundary.Output] = []
        self._why: str | None = None
        if self._forward is None:
            self._own, self._value = loss, loss.detach()
            self._sources, self._why = boundary.outputs_of(loss)
            self._why = self._why or versions.own_loss_obstacle(ambient.sizes)
            self._gradients: list[torch.Tensor | None] = [None] * len(self._sources)

    def obstacle(self) -> str | None:
        return self._why

    def fresh(self) -> bool:
        """Whether the forward passes behind the loss have not been replayed: the script's own loss can be used."""
        return all(forward.again is None for forward in self._forwards())

    def loss(self) -> torch.Tensor:
        """The loss behind the replayed forward passes."""
        if self._forward is not None:
            return follow(self._forward.again, self._path or ())
        outputs = [follow(source.owner.again, source.path) for source in self._sources]
        return boundary.Rest.apply(self._value, self._given, *outputs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a backward pass from the script's own loss: the gradients at the model's outputs are kept."""
        if self._own is None:
            yield
            return
        for forward in self._forwards():
            forward.watcher = self
        try:
            with boundary.within(lambda: all(gradient is None for gradient in self._gradients)):
                yield
        finally:
            for forward in self._forwards():
                forward.watcher = None
            if any(gradient is not None for gradient in self._gradients):
                self._own = None  # its graph is used up

    def keep(self, forward: Forward, path: Path, gradient: torch.Tensor) -> None:
        """The script's own loss has given the output of `forward` at `path` this gradient."""
        for index, source in enumerate(self._sources):
            if source.owner is forward and source.path == path:
                self._gradients[index] = gradient.detach()

    def replay(self, engine: Any) -> None:
        """Raises DifferenceError if the forward pass has given another loss than the first time."""
        loss = self.loss()
        # A collective within the forward pass may have been aborted on a device before the first one was there.
        is_known = loss.device.type == "cpu" or not engine.zero_optimization_partition_weights()
        if self._first is not None and is_known and not matching.nearly(loss, self._first):
            raise DifferenceError(words.other_loss(self._first.tolist(), loss.tolist()))
        self._original(engine, loss, **self._kwargs)

    def _forwards(self) -> list[Forward]:
        return [self._forward] if self._forward is not None else [source.owner for source in self._sources]

    def _given(self, gradient: torch.Tensor) -> list[torch.Tensor | None]:
        """What the script's loss gives the outputs, if it is given `gradient`, as the engine scales it."""
        if self._own is not None:
            edges = [source.edge for source in self._sources]
            self._gradients = list(torch.autograd.grad(self._own, edges, gradient, allow_unused=True))
            self._own = None
        return self._gradients


class Call(Event):
    """Anything else that takes all ranks: engine.step(), a collective of the script, a checkpoint."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ambient: Ambient,
        writes: bool = False,
    ) -> None:
        """writes: the call changes tensors that it is given; they are copied, and the copies used."""
        self._function = function
        self._live = (args, kwargs)
        self._given = batches_.clone_tensors((args, kwargs)) if writes else (args, kwargs)
        self.ambient = ambient
        self._writes = writes

    def replay(self, engine: Any) -> None:
        args, kwargs = batches_.clone_tensors(self._given) if self._writes else self._given
        self._function(*args, **kwargs)

    def renew(self) -> None:
        """Put what the call was given back into the script's own tensors, for making it again."""
        for live, given in zip(batches_.contained(self._live), batches_.contained(self._given), strict=True):
            with torch.no_grad():
                live.copy_(given)

    def made(self) -> None:
        """The call is over: the script's own tensors are no longer needed."""
        if self._writes:
            self._live = self._given


class Launch(Call):
    """A send or a receive that the script has begun. settled: the script has waited for it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], ambient: Ambient):
        super().__init__(function, args, kwargs, ambient, writes=True)
        self.settled = False
        self.work: Any = None  # torch's handle

    def begin(self) -> None:
        """Into the script's own tensors, which get back first what was in them."""
        if self.work is not None:
            self.renew()
        args, kwargs = self._live
        self.work = self._function(*args, **kwargs)

    def replay(self, engine: Any) -> None:
        if self.settled:
            args, kwargs = batches_.clone_tensors(self._given)
            self.work = self._function(*args, **kwargs)
        else:
            self.begin()

    def settle(self) -> None:
        self.settled = True
        self.made()


class Settle(Event):
    """The script waits for what it has launched."""

    def __init__(self, launch: Launch, ambient: Ambient) -> None:
        self._launch = launch
        self.ambient = ambient

    def replay(self, engine: Any) -> None:
        self._launch.work.wait()


class Handle:
    """The script's handle of a `Launch`: it outlives a failure. make: makes a wait of the script."""

    def __init__(self, launch: Launch, make: Callable[[Launch, Callable[[], Any]], Any]) -> None:
        self._launch = launch
        self._make = make

    def wait(self, *timeout: Any, **named: Any) -> bool:
        result = self._make(self._launch, lambda: self._launch.work.wait(*timeout, **named))
        self._launch.settle()
        return bool(result)

    def is_completed(self) -> bool:
        """Waits: that a peer has done its part is not always seen at the same place, and a replay needs the place."""
        return self.wait()

    def is_success(self) -> bool:
        return self.wait()

    def _source_rank(self) -> int:
        return int(self._launch.work._source_rank())

    source_rank = _source_rank


@dataclass(slots=True)
class Sealed:
    """How an iteration ended: what belongs to its version besides the engine's state."""

    ambient: Ambient
    switches: Switches
    buffers: dict[str, torch.Tensor]
    client: dict[str, Any]
    data: dict[str, Any]


@dataclass(slots=True)
class Record:
    """Iteration `version`: events in order; sealed: None while it goes on."""

    version: int
    events: list[Event] = field(default_factory=list)
    sealed: Sealed | None = None

    def obstacle(self) -> str | None:
        return next((reason for reason in (event.obstacle() for event in self.events) if reason), None)

    def release(self) -> None:
        """The outputs of replayed forwards are no longer needed."""
        for event in self.events:
            if isinstance(event, Forward):
                event.again = None

    def forward_of(self, loss: torch.Tensor) -> tuple[Forward | None, Path | None]:
        """The forward that `loss` came out of, and where it was in the output."""
        for event in reversed(self.events):
            if isinstance(event, Forward):
                path = event.path_to(loss)
                if path is not None:
                    return event, path
        return None, None
