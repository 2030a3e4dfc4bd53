"""FailoverConfig as command line flags, for frameworks whose scripts are configured that way.

    --ff-failover                     protect the job (without it none of the others does anything)
    --ff-config FILE                  a JSON file with the fields of an "ff_failover" block
    --ff-interval 2 --ff-commit relaxed --ff-persist-period 100 ...     one flag per field; they win over the file

The flags are made from the schema, so there is one for every field, with the schema's own rules and messages. A field
inside an object has the object's name in front. Needs no torch: the launcher reads them too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ff_core.config.fields import Scope, allowed_of, inner_model, scope_of
from ff_core.config.file import load_fields
from ff_core.config.schema import FailoverConfig

SWITCH = "--ff-failover"
FILE = "--ff-config"
_PREFIX = "--ff-"
_SOURCE = "command line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags to `parser`, in a group of their own. Values stay text; `from_namespace` reads them."""
    group = parser.add_argument_group(
        title="fftrain", description="Survive the loss of ranks; see `python -m ff_core.config.table` for all fields."
    )
    group.add_argument(SWITCH, action="store_true", help="Protect the job. Start it with `fftrain run`.")
    group.add_argument(FILE, metavar="FILE", default=None, help='JSON file with the fields of an "ff_failover" block.')
    for path, info in _fields():
        described = f"{info.description} Allowed: {allowed_of(info)}.".replace("%", "%%")
        if scope_of(info) is Scope.LAUNCH:
            described += " Processes need it before the script runs: on the command line, not set by the script."
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if info.annotation is bool else {}
        group.add_argument(_option(path), default=None, metavar="VALUE", help=described, **extra)


def from_namespace(args: argparse.Namespace) -> FailoverConfig | None:
    """The configuration that parsed flags give; None without --ff-failover. Raises ConfigError."""
    if not getattr(args, "ff_failover", False):
        return None
    given = {}
    for path, info in _fields():
        text = getattr(args, _option(path)[2:].replace("-", "_"), None)
        if text is not None:
            given[path] = _value(text, info)
    return _configuration(args.ff_config, given)


def from_words(words: Sequence[str]) -> FailoverConfig | None:
    """As `from_namespace`, for a command line of which only these flags are known. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_arguments(parser)
    if SWITCH not in words:
        return None
    return from_namespace(parser.parse_known_args(list(_ours(words)))[0])


def _ours(words: Sequence[str]) -> Iterator[str]:
    """Our flags and their values among `words`: another program's options must not be taken for theirs."""
    take = False
    for word in words:
        if word.startswith("--"):
            take = word.startswith(_PREFIX)
            if take:
                yield word
            take = take and "=" not in word
        elif take:
            yield word
            take = False


def _fields() -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field that has a flag, by its path in the schema. `enabled` is --ff-failover."""

    def walk(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
        for name, info in model.model_fields.items():
            inner = inner_model(info)
            if inner is not None:
                yield from walk(inner, (*prefix, name))
            elif (*prefix, name) != ("enabled",):
                yield (*prefix, name), info

    return walk(FailoverConfig, ())


def _option(path: Sequence[str]) -> str:
    return _PREFIX + "-".join(path).replace("_", "-")


def _value(text: str, info: FieldInfo) -> Any:
    """A number or truth value where `text` is one; sizes and words stay text, for the schema to judge."""
    if info.annotation is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _configuration(file: str | None, given: Mapping[tuple[str, ...], Any]) -> FailoverConfig:
    fields: Any = {} if file is None else load_fields(file)
    if file is not None:
        FailoverConfig.from_dict(fields, source=file)  # its mistakes are the file's
    fields = {**fields, "enabled": True}
    for path, value in given.items():
        target = fields
        for name in path[:-1]:
            target[name] = dict(target.get(name, {}))
            target = target[name]
        target[path[-1]] = value
    return FailoverConfig.from_dict(fields, source=_SOURCE)
