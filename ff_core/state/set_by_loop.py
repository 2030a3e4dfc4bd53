"""Numbers of a data loader's objects that the training loop sets between two items: a difficulty, a strength of noise.

numbers = SetByLoop(loader)
saved = numbers.before_item()       # path -> number, of those that the loop has set so far
...                                 # an item is loaded
numbers.behind_item()
set_by_loop.put(loader, saved)      # in another process, before it loads the same item
"""

from __future__ import annotations

from typing import Any

from ff_core.state import data_state, objects, reach

_MOST_ITEMS = 1000  # of a list or dict that is looked through


class SetByLoop:
    """Of attributes of objects, and of the script's classes, that are single numbers when this is made."""

    def __init__(self, loader: Any) -> None:
        self._places = _places(loader)
        self._paths: set[str] = set()
        self._behind: list[Any] = []

    def before_item(self) -> dict[str, Any]:
        now = self._values()
        if self._behind and now != self._behind:
            pairs = zip(self._places, self._behind, now, strict=True)
            self._paths.update(place[0] for place, old, new in pairs if old != new)
        if not self._paths:
            return {}
        return {place[0]: value for place, value in zip(self._places, now, strict=True) if place[0] in self._paths}

    def behind_item(self) -> None:
        self._behind = self._values()

    def _values(self) -> list[Any]:
        return [data_state.value_of(owner, name) for _, owner, name in self._places]


def put(loader: Any, saved: dict[str, Any]) -> None:
    """What is not there is left: the item proves what it is."""
    for path, owner, name in _places(loader) if saved else ():
        if path not in saved:
            continue
        if isinstance(owner, dict):
            owner[name] = saved[path]
        else:
            setattr(owner, name, saved[path])


def _places(loader: Any) -> list[tuple[str, Any, Any]]:
    """Path, owner, name."""
    found = list(data_state.numbers(loader, _MOST_ITEMS))
    for path, part in reach.objects(loader, _MOST_ITEMS):
        kinds = [kind for kind in type(part).__mro__ if objects.is_users_class(kind)]
        found += [(f"{path}.{kind.__qualname__}.{name}", kind, name) for kind in kinds for name in vars(kind)]
    return [place for place in found if type(data_state.value_of(place[1], place[2])) in (int, float)]
