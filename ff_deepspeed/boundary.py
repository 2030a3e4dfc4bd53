"""Where a loss that the script computes itself leaves the model: the gradients that it sends back into it.

    loss = cross_entropy(engine(x), y); engine.backward(loss)

The script's own part, from the outputs of engine(...) to the loss, is not run again. What it gives the model is one
gradient for each output that it uses. These are kept, and a replayed forward gets them, bit by bit.
A collective in the backward pass of that part would not be made again with them, so it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

_within: Callable[[], bool] | None = None  # of the backward pass that is under way
_MARK = "ff_deepspeed"  # in the metadata of an autograd node: {output number: what it is}


@dataclass(frozen=True)
class Output:
    """An output of engine(...) that a loss was computed from. owner: its forward pass; path: where it is in there."""

    owner: Any
    path: Any
    edge: GradientEdge


def mark(
    tensor: torch.Tensor, what: Callable[[], tuple[Any, Any] | None], seen: Callable[[torch.Tensor], None]
) -> None:
    """`tensor` is an output of engine(...). seen: called with its gradient in each backward pass.

    what: its (owner, path), or None if the owner is gone.
    """
    node: Any = tensor.grad_fn
    if node is not None:
        node.metadata.setdefault(_MARK, {})[tensor.output_nr] = what
        tensor.register_hook(seen)


def outputs_of(loss: torch.Tensor) -> tuple[list[Output], str | None]:
    """The outputs of engine(...) that `loss` was computed from, and why its gradient cannot be given again, or None."""
    found: list[Output] = []
    why: str | None = None
    stack: list[tuple[Any, int]] = [(loss.grad_fn, loss.output_nr)]
    seen: set[tuple[Any, int]] = set()
    while stack:
        node, number = stack.pop()
        if node is None or (node, number) in seen:
            continue
        seen.add((node, number))
        what = node.metadata.get(_MARK, {}).get(number)
        known = None if what is None else what()
        if known is not None:
            owner, path = known
            found.append(Output(owner, path, GradientEdge(node, number)))
        elif hasattr(node, "variable"):
            why = "the loss depends on a parameter that it does not get through engine(...)"
        else:
            stack += node.next_functions
    if why is None and _one_within_another(found):
        why = "the loss is computed from several outputs of engine(...), one of which depends on another"
    return found, why


@contextmanager
def within(is_within: Callable[[], bool]) -> Iterator[None]:
    """Around a backward pass from a loss of the script's own. is_within: it has not come to the model yet."""
    global _within
    before, _within = _within, is_within
    try:
        yield
    finally:
        _within = before


def in_own_loss() -> bool:
    """Whether a backward pass is in the script's own part of a loss. For every thread: a device has its own."""
    return _within is not None and _within()


def _one_within_another(outputs: list[Output]) -> bool:
    """Whether the model computed one of `outputs` from another one: its gradient would be counted twice."""
    if len(outputs) < 2:
        return False
    ends = {output.edge.node for output in outputs}
    stack = [following for node in ends for following, _ in node.next_functions]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node in ends:
            return True
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
    return len(ends) < len(outputs)


class Rest(torch.autograd.Function):
    """The script's part of a loss, behind outputs that were computed again: its value, and the gradients it gives."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Callable[[torch.Tensor], list[Any]], *outputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.gradients(given[0]))
