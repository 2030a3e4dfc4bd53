"""What a script keeps in Megatron's arguments: `get_args().stage += 1`. A place of variables, as `ff_core.state.space`
has them.

Attributes count whose names the script's code sets, and of what can change in place those that it names. The others are
Megatron's, which changes them itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ff_core.state.space import Functions, Space
from ff_core.state.tensor_attributes import codes_of_script, set_in, used_in
from ff_core.state.values import is_fixed
from ff_megatron.scalars import COUNTERS

#: What the adapter saves, and what follows from it.
_SAVED = frozenset({*COUNTERS, "iteration", "curr_iteration", "num_floating_point_operations_so_far"})


class OfArguments(Space):
    """args: Megatron's."""

    def __init__(self, args: Any) -> None:
        codes = list(codes_of_script())
        changing = {name for name in used_in(codes) if not is_fixed(getattr(args, name, None))}
        self._names = frozenset(set_in(codes) | changing) - _SAVED
        self._of = vars(args)
        super().__init__("get_args().", dict(self.values({})))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return {name: self._of[name] for name in self._names & self._of.keys()}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        self._of.update(new)

    def remove(self, functions: Functions, name: str) -> None:
        self._of.pop(name, None)
