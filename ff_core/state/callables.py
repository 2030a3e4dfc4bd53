"""What is behind a callable that is no plain function: a method's object, and what a functools.partial has bound."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch


def behind(value: Any) -> Iterator[tuple[str, Any]]:
    """(what goes behind the callable's label, object). Nothing for a callable of another kind."""
    if type(value) is MethodType:
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".argument{number}", part) for number, part in enumerate(value.args))
        yield from ((f".{name}", part) for name, part in value.keywords.items())


def bound_by(value: Any) -> dict[str, Any]:
    """Arguments that a functools.partial has bound, under names."""
    if not isinstance(value, functools.partial):
        return {}
    return {**{f"argument{number}": part for number, part in enumerate(value.args)}, **value.keywords}


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """The hooks on a module itself and on its own parameters."""
    held: list[Any] = [
        module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    ]  # fmt: skip
    for parameter in module._parameters.values():
        if parameter is not None:
            held += [parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)]
    return [hook for hooks in held if hooks for hook in hooks.values()]
