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

from ff_core.errors import UnsupportedError
from ff_core.state import codec

Number = bool | int | float | str | None
State = dict[str, Any]


def trainable(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The tensors that `optimizer` updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def tensors(state: State) -> dict[str, torch.Tensor]:
    """What is copied of one parameter's state, by name."""
    return {name: value for name, value in state.items() if torch.is_tensor(value) and value.dim()}


def numbers(states: Sequence[State]) -> dict[str, Any]:
    """The numbers of each parameter's state, for `rows`: {"plain", "tensors"}. Nothing waits for a device.

    plain: Python's, by name, for each parameter. tensors: {"name", "rows", "values"} for each name, dtype and device;
    values: a new tensor [rows] where they lie.
    """
    plain: list[dict[str, Number]] = []
    places: dict[tuple[Any, ...], tuple[list[int], list[torch.Tensor]]] = {}
    for row, state in enumerate(states):
        plain.append({name: value for name, value in state.items() if not isinstance(value, torch.Tensor)})
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and not value.dim():
                rows, values = places.setdefault((name, value.dtype, value.device), ([], []))
                rows.append(row)
                values.append(value)
    stacked = [
        {"name": name, "rows": rows, "values": torch.stack(values).detach()}
        for (name, *_), (rows, values) in places.items()
    ]
    return {"plain": plain, "tensors": stacked}


def rows(saved: Mapping[str, Any]) -> list[dict[str, Number]]:
    """`numbers()`, encoded and decoded meanwhile, as plain numbers of each parameter by name."""
    found = [dict(row) for row in saved["plain"]]
    for stacked in saved["tensors"]:
        for row, value in zip(stacked["rows"], stacked["values"].tolist(), strict=True):
            found[row][stacked["name"]] = value
    return found


def set_numbers(state: State, values: Mapping[str, Number]) -> None:
    """Put one of `rows()` back, tensors in place. A number that it does not have is forgotten."""
    for name in [n for n, value in state.items() if n not in values and not (torch.is_tensor(value) and value.dim())]:
        del state[name]
    for name, value in values.items():
        if torch.is_tensor(state.get(name)):
            state[name].fill_(value)
        else:
            state[name] = value


def groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the parameter groups say besides their parameters: {"values", "on_device"} each, to be encoded at once.

    values: by name; tensors are the live ones. on_device: names of those values that are tensors on a device.
    """
    found = []
    for group in optimizer.param_groups:
        values = {name: value for name, value in group.items() if name != "params"}
        on_device = [name for name, value in values.items() if torch.is_tensor(value) and value.device.type != "cpu"]
        found.append({"values": values, "on_device": on_device})
    return found


def set_groups(optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Put `groups()` back. What a group did not say then, as a step count before the first step, is forgotten."""
    for group, row in zip(optimizer.param_groups, saved, strict=True):
        values = row["values"]
        for name in group.keys() - values.keys() - {"params"}:
            del group[name]
        for name, value in values.items():
            put = _put(group.get(name), value)
            group[name] = put.to(group["params"][0].device) if name in row["on_device"] else put


def _put(old: Any, value: Any) -> Any:
    """`value`, in the tensors of `old` where it has such: a scheduler or a CUDA graph may hold the very tensor."""
    if torch.is_tensor(old) and torch.is_tensor(value):
        return old.copy_(value)
    if isinstance(value, (list, tuple)) and type(old) is type(value) and len(old) == len(value):
        return type(value)(_put(one, other) for one, other in zip(old, value, strict=True))
    return copied(value)


def copied(value: Any) -> Any:
    """`value`, with clones of the tensors in it."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return {key: copied(item) for key, item in value.items()} if type(value) is dict else value


def obstacles(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """What the rule does not see of an optimizer's state, a clause each.

    State of tensors that it does not step is no obstacle: a wrapper has put masters in the place of the parameters for
    which Adagrad's constructor had made it.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    replaced = False
    for key, state in optimizer.state.items():
        if id(key) in held:
            yield from _unseen(state)
        elif torch.is_tensor(key):
            replaced = True
        else:
            yield f"its state has an entry {str(key)[:40]!r} that belongs to no parameter"
    try:
        codec.encode(groups(optimizer), "its parameter groups")
    except UnsupportedError as error:
        yield str(error)
    if replaced:
        return  # its state_dict() fails; those of its copies in a trial do not
    try:
        shown = optimizer.state_dict()
    except Exception as error:
        yield f"its state_dict() fails: {type(error).__name__}: {error}"
    else:
        yield from _kept_elsewhere(optimizer, shown)


def _kept_elsewhere(optimizer: torch.optim.Optimizer, shown: Mapping[str, Any]) -> Iterator[str]:
    """What a class or a hook adds to its checkpoint, `shown`, is state that it keeps elsewhere."""
    for name in shown.keys() - {"state", "param_groups"}:
        yield f"its state_dict() has an entry {str(name)[:40]!r} besides the state of its parameters"
    known = {str(name) for state in optimizer.state.values() for name in state}
    added = {str(name) for state in shown.get("state", {}).values() for name in state} - known
    for name in sorted(added):
        yield f"its state_dict() says {name!r} of a parameter, which its state does not have"
    known = {name for group in optimizer.param_groups for name in group}
    for name in sorted({name for group in shown.get("param_groups", ()) for name in group} - known):
        yield f"its state_dict() says {name!r} of a group of parameters, which the group does not have"


def _unseen(state: State) -> Iterator[str]:
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
