"""Mistakes in a block, in words: which field, its value, what is allowed."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ff_core.config.fields import BLOCK, allowed_of, inner_model


def explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """What is wrong with a block of `root`'s fields, one line per mistake: origin, field, value, what is allowed."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        path, info, model = _locate(item["loc"], root)
        reason = str(item["ctx"]["error"]) if item["type"] == "value_error" else ""
        name = ".".join((BLOCK, *path))
        if item["type"] in ("extra_forbidden", "invalid_key"):
            key = str(item["loc"][-1])
            shown = f".{key}" if key.isidentifier() else f"[{key!r}]"
            line = f"{name}{shown} = {item['input']!r}: no such field{_nearest(key, model)}"
        elif info is None or (reason and item["loc"] == ("persist",)):
            # A relation between fields; the validator's text names them with their values.
            lines += [f"{source}: {name}: {line}" for line in reason.splitlines()]
            continue
        else:
            value = "(not shown)" if path == ("secret",) else repr(item["input"])
            line = f"{name} = {value}: allowed: {allowed_of(info)}" + (f" ({reason})" if reason else "")
        if f"{source}: {line}" not in lines:  # a union reports one mistake per member
            lines.append(f"{source}: {line}")
    return "\n".join(lines)


def _locate(
    loc: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[tuple[str, ...], FieldInfo | None, type[BaseModel]]:
    """The part of an error's location that is fields of ours, the last field on it, and the model the path ended in."""
    path: tuple[str, ...] = ()
    info: FieldInfo | None = None
    for part in loc:
        found = model.model_fields.get(str(part))
        if found is None:
            break
        path, info = (*path, str(part)), found
        model = inner_model(found) or model
    return path, info, model


def _nearest(key: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(known)}"
