"""Functions whose bodies are replaced, so that every name that anybody has bound to one reaches the new body.

`from torch.distributed import destroy_process_group` above all other imports binds the function object itself. An
attribute that is set in torch's module later would not be seen by whoever holds that name, or a `functools.partial`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


class Bodies:
    """The replaced bodies of one process, until `undo`."""

    def __init__(self) -> None:
        self._saved: list[tuple[types.FunctionType, types.CodeType, Any, Any]] = []

    def replace(self, function: Callable[..., Any], make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """From now on a call of `function`, by whatever name, is one of `make(original)`.

        Decorators stay around it. Raises TypeError for anything but a Python function that closes over nothing.
        """
        target = inspect.unwrap(function)
        if not isinstance(target, types.FunctionType) or target.__code__.co_freevars:
            raise TypeError(f"{function!r} is no plain Python function: its body cannot be replaced")
        original = types.FunctionType(
            target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
        )
        original.__kwdefaults__ = target.__kwdefaults__
        signature = inspect.signature(target)
        self._saved.append((target, target.__code__, target.__defaults__, target.__kwdefaults__))
        target.__signature__ = signature  # type: ignore[attr-defined]
        target.__code__, target.__defaults__ = _body.__code__, None
        target.__kwdefaults__ = {"_ff_replacement": make(original)}

    def undo(self) -> None:
        for target, code, defaults, kwdefaults in reversed(self._saved):
            target.__code__, target.__defaults__, target.__kwdefaults__ = code, defaults, kwdefaults
            del target.__signature__
        self._saved.clear()


def _body(*args: Any, _ff_replacement: Callable[..., Any], **kwargs: Any) -> Any:
    return _ff_replacement(*args, **kwargs)
