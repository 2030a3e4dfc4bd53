"""What the script of an unmodified loop did since the last versions were sealed, so that it can be done again.

A `Record` is one iteration: the engine calls and the collectives that the script made, in order. Each event holds
what it needs to happen once more: inputs (the tensors themselves, with proof that nobody wrote into them), or the way
from an output of forward to the loss.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ff_deepspeed import batch as batches_
from ff_deepspeed import matching
from ff_deepspeed.ambient import Ambient

Path = tuple[Any, ...]


class Event:
    """One call of the script. `replay` makes it again, after its surroundings (`ambient`) were put back."""

    ambient: Ambient

    def obstacle(self) -> str | None:
        """Why it cannot be replayed, None if it can."""
        return None

    def replay(self, engine: Any) -> None:
        raise NotImplementedError


class Forward(Event):
    """engine(*args, **kwargs) in training. Its outputs are known by weak references, so as not to keep the graph."""

    def __init__(
        self, original: Callable[..., Any], args: Any, kwargs: Any, modes: tuple[bool, ...], ambient: Ambient
    ) -> None:
        self._original = original
        self._modes = modes
        self._inputs = (batches_.share(args), batches_.share(kwargs))
        self._marks = batches_.marks(self._inputs)
        self._outputs: list[tuple[Path, weakref.ref[torch.Tensor]]] = []
        self.ambient = ambient
        self.again: Any = None  # the output of the last replay

    def made(self, output: Any) -> None:
        self._outputs = [(path, weakref.ref(tensor)) for path, tensor in leaves(output)]

    def path_to(self, loss: torch.Tensor) -> Path | None:
        """Where in the output `loss` is, None if it is not one of its tensors."""
        return next((path for path, ref in self._outputs if ref() is loss), None)

    def is_of(self, inputs: Any) -> bool:
        """Whether `inputs` (args, kwargs) have the values of this call's."""
        return matching.same(inputs, self._inputs)

    def obstacle(self) -> str | None:
        return None if batches_.marks(self._inputs) == self._marks else "the script wrote into an input of engine(...)"

    def replay(self, engine: Any) -> None:
        args, kwargs = batches_.share(self._inputs)
        set_modes(engine.module, self._modes)
        enabled, dtype = self.ambient.autocast
        with torch.autocast(engine.device.type, dtype=dtype, enabled=enabled):
            self.again = self._original(engine, *args, **kwargs)


class Backward(Event):
    """engine.backward(loss). forward, path: where the loss came from; None if the script computed it."""

    def __init__(
        self, original: Callable[..., Any], forward: Forward | None, path: Path | None, kwargs: Any, ambient: Ambient
    ) -> None:
        self._original = original
        self._forward = forward
        self._path = path
        self._kwargs = kwargs
        self.ambient = ambient

    def obstacle(self) -> str | None:
        return "the loss is not an output of engine(...)" if self._forward is None else None

    def loss(self) -> torch.Tensor | None:
        """The loss of the replayed forward; None if forward was not replayed."""
        if self._forward is None or self._forward.again is None:
            return None
        return follow(self._forward.again, self._path or ())

    def replay(self, engine: Any) -> None:
        loss = self.loss()
        assert loss is not None
        self._original(engine, loss, **self._kwargs)


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


@dataclass(slots=True)
class Sealed:
    """How an iteration ended: what belongs to its version besides the engine's state."""

    ambient: Ambient
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


def modes_of(module: torch.nn.Module) -> tuple[bool, ...]:
    """Which of the modules in `module` are in training mode."""
    return tuple(child.training for child in module.modules())


def set_modes(module: torch.nn.Module, modes: tuple[bool, ...]) -> None:
    for child, training in zip(module.modules(), modes, strict=True):
        child.training = training


def leaves(output: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """The tensors in an output of forward: tensors, sequences, mappings and objects with attributes, nested."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, (list, tuple)):
        for index, item in enumerate(output):
            yield from leaves(item, (*path, ("item", index)))
    elif isinstance(output, dict):
        for key, item in output.items():
            yield from leaves(item, (*path, ("item", key)))
    elif hasattr(output, "__dict__"):
        for name, item in vars(output).items():
            if isinstance(item, torch.Tensor):
                yield (*path, ("attribute", name)), item


def follow(output: Any, path: Path) -> Any:
    """The tensor at `path` of an output, as found by `leaves`."""
    for kind, name in path:
        output = output[name] if kind == "item" else getattr(output, name)
    return output
