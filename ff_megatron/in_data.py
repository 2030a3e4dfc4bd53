"""Collectives within a data iterator, which nobody would answer after a failure: refused at the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ff_core.errors import UnsupportedError
from ff_core.state import frames, source

IN_DATA = (
    "{line}: {name}() is called within the data iterator. After a failure survivors do not fetch their micro-batches "
    "again, and a replacement fetches by itself, so nobody would answer it. Make the collective in forward_step() or "
    "get_batch(), behind next(data_iterator); what ranks only have to agree on they can derive from a seed"
)


class InData:
    """`ff_core.comm.Listener` of a protected training."""

    @property
    def listening(self) -> bool:
        return source.is_fetching()

    def make(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        given: Any = getattr(function, "args", ())  # (group, operation)
        name = given[1] if len(given) > 1 else getattr(function, "__name__", "a collective")
        raise UnsupportedError(IN_DATA.format(line=frames.line(), name=name))

    launch = make

    def leaving(self) -> None:
        pass
