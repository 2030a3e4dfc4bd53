"""The engine inside what a script puts around it: torch.compile(engine), a trainer library's object, a proxy."""

from __future__ import annotations

from typing import Any

from ff_core.errors import UnsupportedError

_DEPTH = 4


def engine_in(given: Any) -> Any:
    """The DeepSpeed engine that `given` is, or that one of its attributes is, at most four levels deep.

    Raises UnsupportedError if there is none, or if there are several.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    level = [given]
    seen: set[int] = set()
    for _ in range(_DEPTH + 1):
        found = {id(part): part for part in level if isinstance(part, DeepSpeedEngine)}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            raise UnsupportedError(
                f"batches(engine={type(given).__qualname__}): there are {len(found)} engines in it; give one of them"
            )
        new = {id(one): one for one in level if id(one) not in seen}
        seen |= new.keys()
        level = [part for one in new.values() for part in _inside(one)]
    raise UnsupportedError(
        f"batches(engine={type(given).__qualname__}): allowed: the engine of deepspeed.initialize, or an object that "
        "has it as an attribute"
    )


def _inside(part: Any) -> list[Any]:
    slots = [name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    held = [*getattr(part, "__dict__", {}).values(), *(getattr(part, name, None) for name in slots)]
    # torch keeps the modules of a module in a dict.
    return [value for one in held for value in (one.values() if isinstance(one, dict) else [one])]
