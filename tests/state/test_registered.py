from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import ff_core
from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import registered


class Count:
    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    yield
    for name in list(registered.collect()):
        registered.unregister_state(name)


def test_collect_and_load() -> None:
    a, b = Count(1), Count(2)
    ff_core.register_state("a", a)
    ff_core.register_state("b", b)
    saved = registered.collect()
    assert saved == {"a": {"value": 1}, "b": {"value": 2}}
    a.value = b.value = 9
    registered.load(saved)
    assert (a.value, b.value) == (1, 2)


def test_name_taken() -> None:
    first = Count(1)
    ff_core.register_state("ema", first)
    with pytest.raises(FailoverError, match="'ema' already stands for a Count"):
        ff_core.register_state("ema", Count(2))
    assert registered.collect() == {"ema": {"value": 1}}


@pytest.mark.parametrize("name", ["", None, 3])
def test_name_must_be_a_text(name: Any) -> None:
    with pytest.raises(FailoverError, match=r"name = .*: allowed"):
        ff_core.register_state(name, Count(1))


def test_methods_are_required() -> None:
    class Half:
        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(UnsupportedError, match=r"'half'.*Half has no load_state_dict"):
        ff_core.register_state("half", Half())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no state_dict and no load_state_dict"):
        ff_core.register_state("none", object())  # type: ignore[arg-type]


def test_load_needs_the_same_names_and_changes_nothing_otherwise() -> None:
    kept = Count(5)
    ff_core.register_state("kept", kept)
    with pytest.raises(FailoverError, match="saved but not registered in this process: lost"):
        registered.load({"kept": {"value": 1}, "lost": {}})
    with pytest.raises(FailoverError, match="registered after that version was saved: kept"):
        registered.load({})
    assert kept.value == 5


def test_unregister() -> None:
    ff_core.register_state("a", Count(1))
    registered.unregister_state("a")
    assert registered.collect() == {}
    with pytest.raises(FailoverError, match="no state is registered as 'a'"):
        registered.unregister_state("a")
