"""Variables that nobody has touched are looked at all at once; what is touched is seen in the very next look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import values
from ff_core.state.began import Began
from ff_core.state.captured import Taker
from ff_core.state.live import Live
from ff_core.state.room import Room
from ff_core.state.space import OfObject, Space

Held = dict[str, Any]


class Table:
    rows: list[int] = []


def held() -> Held:
    return {
        "steps": 3, "single": np.array(3.0), "columns": np.arange(6.0).reshape(2, 3)[:, 1],
        "table": [1, [2]], "by_name": {"a": (1, 2)}, "names": {"x"}, "array": np.arange(3.0),
        "weight": torch.zeros(2), "leaf": torch.nn.Parameter(torch.zeros(1)), "objects": [Table()], "kind": Table,
        "_dunder_": None,
    }  # fmt: skip


class Place:
    """A module of a script, looked at after each iteration."""

    def __init__(self, names: Held, space: Space) -> None:
        self.names, self._changed = names, set[str]()
        self._live, self._began = Live({space.label: space}), Began(lambda value: None)
        taker = Taker(Room(1 << 20, 1000), lambda value: False, lambda value: None, share=False)
        self._began.take(self._live.known(self._live.look()), taker)

    def look(self, *, closely: bool = False, more: bool = False) -> set[str]:
        """Names that may have changed. more: they count as changed from now on."""
        awake = self._live.awake(self._began, self._changed)
        seen = dict(self._live.moving(awake, self._began, self._changed, look=closely))
        seen.update(self._live.new(awake))
        other = {path for path, value in seen.items() if self._is_other(path, value, closely)}
        self._changed |= other if more else set()
        return {path.rpartition(":")[2] for path in other}

    def _is_other(self, path: str, value: Any, closely: bool) -> bool:
        mark = self._began.mark(path, value, look=closely)
        return path not in self._began.marks or self._began.is_other(path, value, mark, closely)


def of_module() -> Place:
    names = held()
    return Place(names, Space("tables:", names))


def of_object() -> Place:
    """A place that does not last: it may be gone."""
    owner = Table()
    vars(owner).update(held())
    place = Place(vars(owner), OfObject("tables:", owner))
    place.owner = owner  # type: ignore[attr-defined]
    return place


CHANGES: dict[str, Callable[[Held], Any]] = {
    "steps": lambda names: names.update(steps=4),
    "table": lambda names: names["table"][1].append(3),
    "by_name": lambda names: names.update(by_name={"a": (1, 3)}),
    "names": lambda names: names["names"].add("y"),
    "array": lambda names: names["array"].fill(1),
    "single": lambda names: names["single"].fill(1),
    "columns": lambda names: names["columns"].fill(1),
    "weight": lambda names: names["weight"].add_(1),
    "leaf": lambda names: setattr(names["leaf"], "scale", 2),
    "objects": lambda names: names["objects"].append(1),
    "kind": lambda names: names.update(kind=int),
    "late": lambda names: names.update(late=1),
    "_dunder_": lambda names: names.update(_dunder_=1),
}
PLACES = pytest.mark.parametrize("make", [of_module, of_object])


@PLACES
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_in_the_next_look_and_in_all_others(make: Callable[[], Place], name: str) -> None:
    place = make()
    assert [place.look() for _ in range(3)] == [set()] * 3
    CHANGES[name](place.names)
    assert [place.look(more=name != "late") for _ in range(3)] == [{name}] * 3


@PLACES
def test_another_one_is_seen_beside_one_that_changes_in_each_iteration(make: Callable[[], Place]) -> None:
    place = make()
    for name in CHANGES:
        CHANGES[name](place.names)
        assert name in place.look(more=True)
        place.names["steps"] += 1


@PLACES
def test_what_is_written_past_torchs_counts_is_seen_closely(make: Callable[[], Place]) -> None:
    place = make()
    place.look()
    place.names["weight"].data.fill_(3)
    assert place.look() == set() and place.look(closely=True) == {"weight"}


@PLACES
def test_a_list_that_gets_something_else_is_seen(make: Callable[[], Place]) -> None:
    """Nobody can write down what is in it by then."""
    place = make()
    place.look()
    place.names["table"].append(torch.zeros(1))
    assert place.look() == {"table"}


def test_the_untouched_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = of_module(), list[str]()
    place.look()
    mark = Began.mark
    monkeypatch.setattr(Began, "mark", lambda began, path, *a, **k: asked.append(path) or mark(began, path, *a, **k))
    place.look()
    assert sorted(asked) == ["tables:columns", "tables:objects"]  # only what they have tells
    assert values.is_of_interest(place.names["objects"])
