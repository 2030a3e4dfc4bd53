"""Variables that nobody has touched: most of a script's are constants and functions, one look tells for all of them.

    still = Still(["LAYERS", "train", "losses"], {"LAYERS": 12, "train": train})
    still.to_look_at(vars(module))    # "losses", and what has another value by now
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any


class Still:
    """Of one place. names: all of them.  fixed: of those that never change in place, what they had at first."""

    def __init__(self, names: Sequence[str], fixed: Mapping[str, Any]) -> None:
        self._moving = [name for name in names if name not in fixed]
        self._fixed, self._values = list(fixed), list(fixed.values())

    def to_look_at(self, held: Mapping[str, Any]) -> list[str]:
        """Names of `held` whose values may be others than at first."""
        names = [name for name in self._moving if name in held]
        if not all(map(is_, map(held.get, self._fixed), self._values)):  # a loop within the interpreter
            pairs = zip(self._fixed, self._values, strict=True)
            names += [name for name, value in pairs if name in held and held[name] is not value]
        return names
