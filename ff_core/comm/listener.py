"""`Listener`: who makes the operations that a script calls itself, so that it can make them again after a failure.

It is asked in the groups, because every way to a collective leads there: a name of torch.distributed's functions that
was bound before anything was patched, a framework's wrapper, a functional collective, a device mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from . import compat
from .done import DoneWork
from .solo import flatten


class Listener(Protocol):
    """One per process, for an unmodified training loop."""

    @property
    def listening(self) -> bool:
        """Whether an operation begun now, by this thread, is the script's."""

    def make(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`function(*args, **kwargs)`, which is complete when it returns. Tensors in `args` may be written into."""

    def launch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same for a `function` that returns a handle at once; gives a handle to be waited for."""

    def leaving(self) -> None:
        """The script is about to destroy all groups: afterwards nothing could be repeated."""


class Gathered:
    """The operations that a script coalesces, until the block's end: they are launched together."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.operations: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []


class Books(Protocol):
    """The registry, as far as it is asked here."""

    @property
    def listener(self) -> Listener | None: ...


class Group(Protocol):
    """A group, as far as its operations are led to the listener. gathered: what the script is coalescing now."""

    gathered: Gathered | None

    @property
    def registry(self) -> Books: ...

    def perform(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation in the current generation: its handle, or None if there is nothing to wait for."""

    def start_block(self, device: torch.device) -> None:
        """What is performed from now on is launched by `end_block`, together."""

    def end_block(self, device: torch.device) -> Any:
        """Its handle, or None."""


def call(group: Group, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation of `group`. If the script has begun it, the listener makes it."""
    listener = _listening(group)
    if listener is None:
        return group.perform(op, args, kwargs)
    if group.gathered is not None:
        group.gathered.operations.append((op, args, kwargs))
        return None
    if op in compat.POINT_TO_POINT:  # complete when the peer has done its part, which may need later operations of ours
        return listener.launch(partial(_start, group, op), args, kwargs)
    return listener.make(partial(_complete, group, op), args, kwargs)


def run(group: Group, function: Callable[..., Any], *args: Any) -> Any:
    """The same for a `function` of `group` that is complete when it returns."""
    listener = _listening(group)
    return function(*args) if listener is None else listener.make(function, args, {})


def start_coalescing(group: Group, device: torch.device) -> None:
    if _listening(group) is None:
        group.start_block(device)
    else:
        group.gathered = Gathered(device)


def end_coalescing(group: Group, device: torch.device) -> Any:
    listener, gathered = _listening(group), group.gathered
    if listener is None or gathered is None:
        return group.end_block(device)
    group.gathered = None
    return listener.make(partial(_coalesced, group, device), (gathered.operations,), {})


def _listening(group: Group) -> Listener | None:
    listener = group.registry.listener
    return listener if listener is not None and listener.listening else None


def _start(group: Group, op: str, *args: Any, **kwargs: Any) -> Any:
    return group.perform(op, args, kwargs)


def _complete(group: Group, op: str, *args: Any, **kwargs: Any) -> DoneWork | None:
    work = group.perform(op, args, kwargs)
    if work is None:
        return None
    work.wait()
    values = (*args, *kwargs.values())
    return DoneWork(flatten(values[0]) if op in compat.OUTPUT_FIRST and values else [])


def _coalesced(group: Group, device: torch.device, operations: list[Any]) -> DoneWork | None:
    group.start_block(device)
    for op, args, kwargs in operations:
        group.perform(op, args, kwargs)
    work = group.end_block(device)
    if work is None:
        return None
    work.wait()
    return DoneWork([])
