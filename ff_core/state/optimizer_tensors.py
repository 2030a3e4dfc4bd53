"""Where an optimizer keeps what it remembers: tensors to be copied, and numbers to be written down.

One rule for every optimizer. What `optimizer.state` holds for a parameter is either a tensor with at least one
dimension, which is copied; or a number (a Python value or a tensor without dimensions, such as a step count), which is
saved with the scalars. Values of parameter groups are saved with the scalars, too. Anything else is an obstacle.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

Number = bool | int | float | str | None
State = dict[str, Any]


def trainable(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The tensors that `optimizer` updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def tensors(state: State) -> dict[str, torch.Tensor]:
    """What is copied of one parameter's state, by name."""
    return {name: value for name, value in state.items() if torch.is_tensor(value) and value.dim()}


def numbers(states: Sequence[State]) -> list[dict[str, Number]]:
    """The numbers of each parameter's state, by name. Tensors of one device are read at once, after its work."""
    rows: list[dict[str, Number]] = [{} for _ in states]
    places: dict[tuple[Any, Any], list[tuple[dict[str, Number], str, torch.Tensor]]] = {}
    for row, state in zip(rows, states, strict=True):
        for name, value in state.items():
            if not torch.is_tensor(value):
                row[name] = value
            elif not value.dim():
                places.setdefault((value.device, value.dtype), []).append((row, name, value))
    for held in places.values():
        values = torch.stack([tensor.detach() for _, _, tensor in held]).tolist()
        for (row, name, _), value in zip(held, values, strict=True):
            row[name] = value
    return rows


def set_numbers(state: State, values: Mapping[str, Number]) -> None:
    """Put a row of `numbers()` back, tensors in place. A number that it does not have is forgotten."""
    for name in [n for n, value in state.items() if n not in values and not (torch.is_tensor(value) and value.dim())]:
        del state[name]
    for name, value in values.items():
        if torch.is_tensor(state.get(name)):
            state[name].fill_(value)
        else:
            state[name] = value


def groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the parameter groups say besides their parameters. Tensors are clones."""
    return [{k: copied(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def set_groups(optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Put `groups()` back. What a group did not say then, as a step count before the first step, is forgotten."""
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        for key, value in values.items():
            if torch.is_tensor(group.get(key)) and torch.is_tensor(value):
                group[key].copy_(value)  # a scheduler may hold the very tensor
            else:
                group[key] = copied(value)


def copied(value: Any) -> Any:
    return value.detach().clone() if torch.is_tensor(value) else value


def obstacles(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """What the rule does not see of an optimizer's state, a clause each."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, state in optimizer.state.items():
        if id(key) not in held:
            yield f"its state has an entry {str(key)[:40]!r} that belongs to no parameter of its groups"
            continue
        yield from unseen(state)
    # What a class adds to its checkpoint is state that it keeps elsewhere.
    for name in optimizer.state_dict().keys() - {"state", "param_groups"}:
        yield f"its state_dict() has an entry {str(name)[:40]!r} besides the state of its parameters"


def unseen(state: State) -> Iterator[str]:
    """The values of one parameter's state that are neither tensors nor numbers."""
    for name, value in state.items():
        if torch.is_tensor(value):
            if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
                yield f"its state {name!r} is a {type(value).__qualname__} of layout {value.layout}, no plain tensor"
        elif not isinstance(value, (bool, int, float, str, type(None))):
            yield f"its state {name!r} is a {type(value).__qualname__}, neither a tensor nor a number"


def make_by_torch(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> None:
    """Have an optimizer of torch make the state of `p` as its first step would; it wants to see a gradient.

    It knows about amsgrad, fused, capturable and so on. SGD makes its momentum later, in the step itself.
    """
    init = optimizer._init_group  # type: ignore[attr-defined]
    lists: list[list[Any]] = [[] for name in list(inspect.signature(init).parameters)[1:]]
    before = p.grad
    p.grad = torch.zeros_like(p)
    try:
        init({**group, "params": [p]}, *lists)
    finally:
        p.grad = before
