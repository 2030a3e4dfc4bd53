"""State of the user's own that must survive a failure: an EMA, counters, a home-made scheduler.

    ff_core.register_state("ema", ema)     # anything with state_dict() and load_state_dict(state)

Register before the training loop begins, on every rank, under the same name. The state is taken at the end of each
iteration and put back after a failure; what state_dict() returns must be encodable (see ff_core.state.codec).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import found


@runtime_checkable
class Stateful(Protocol):
    """What can be registered."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


_registered: dict[str, Stateful] = {}
_FOUND = "found: "  # before the names of what nobody has registered, but the script steps


def register_state(name: str, obj: Stateful) -> None:
    """Protect `obj` under `name`, which is unique in the process.

    Raises UnsupportedError if obj lacks state_dict or load_state_dict, FailoverError if the name is empty or taken.
    """
    if not isinstance(name, str) or not name or name.startswith(_FOUND):
        raise FailoverError(
            f"register_state: name = {name!r}: allowed: a text that is not empty and does not begin with {_FOUND!r}"
        )
    missing = [method for method in ("state_dict", "load_state_dict") if not callable(getattr(obj, method, None))]
    if missing:
        raise UnsupportedError(
            f"register_state({name!r}): an object of type {type(obj).__qualname__} has no {' and no '.join(missing)}; "
            "give it both, or wrap it in an object that has them"
        )
    if name in _registered:
        raise FailoverError(
            f"register_state: the name {name!r} already stands for a {type(_registered[name]).__qualname__}; "
            f"use another name. Taken: {', '.join(sorted(_registered))}"
        )
    _registered[name] = obj


def unregister_state(name: str) -> None:
    """Stop protecting what `name` stands for. Raises FailoverError if it stands for nothing."""
    if name not in _registered:
        raise FailoverError(f"unregister_state: no state is registered as {name!r}; {_known()}")
    del _registered[name]


def collect() -> dict[str, Any]:
    """name -> state_dict() of everything registered, and of what was found (`ff_core.state.found`).

    The values may alias live state: encode them before it changes.
    """
    states = {name: obj.state_dict() for name, obj in _registered.items()}
    return states | {_FOUND + name: state for name, state in found.collect().items()}


def known() -> Mapping[str, Stateful]:
    """name -> object of everything registered."""
    return _registered


def load(saved: Mapping[str, Any]) -> None:
    """Put collect()'s result back. Raises FailoverError, with nothing changed, when other names are registered here."""
    states = {name: state for name, state in saved.items() if not name.startswith(_FOUND)}
    if states.keys() != _registered.keys():
        lost = sorted(states.keys() - _registered.keys())
        new = sorted(_registered.keys() - states.keys())
        reasons = [f"saved but not registered in this process: {', '.join(lost)}"] if lost else []
        reasons += [f"registered after that version was saved: {', '.join(new)}"] if new else []
        raise FailoverError(
            f"registered state does not match the restored version ({'; '.join(reasons)}). "
            "Call register_state before the training loop begins, with the same names on every rank and in every run"
        )
    for name, obj in _registered.items():
        obj.load_state_dict(states[name])
    found.load({name.removeprefix(_FOUND): state for name, state in saved.items() if name.startswith(_FOUND)})


def load_known(states: Mapping[str, Any]) -> None:
    """Put back what is registered already of collect()'s result."""
    for name, obj in _registered.items():
        if name in states:
            obj.load_state_dict(states[name])


def _known() -> str:
    return f"registered: {', '.join(sorted(_registered)) or 'nothing'}"
