"""Numbers that a training loop gives to its data set between two items."""

from __future__ import annotations

from typing import Any

from ff_core.state import codec, set_by_loop
from ff_core.state.set_by_loop import SetByLoop


class Inner:
    strength = 1.0  # of the class

    def __init__(self) -> None:
        self.difficulty, self.size = 0, 8


class Data:
    def __init__(self) -> None:
        self.inner, self.table, self.read = Inner(), {"rate": 0.5}, 0


def wire(saved: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = codec.decode(codec.encode(saved))
    return decoded


def test_what_the_loop_sets_goes_with_the_item_and_what_loading_changes_does_not() -> None:
    data = Data()
    numbers = SetByLoop(data)
    assert numbers.before_item() == {}
    data.read += 1  # while the item is loaded
    numbers.behind_item()
    assert numbers.before_item() == {}
    data.inner.difficulty, data.table["rate"] = 3, 0.25
    Inner.strength = 2.0
    saved = wire(numbers.before_item())
    Inner.strength = 1.0
    other = Data()
    set_by_loop.put(other, saved)
    assert (other.inner.difficulty, other.table["rate"], Inner.strength, other.read) == (3, 0.25, 2.0, 0)
    Inner.strength = 1.0
    numbers.behind_item()
    assert wire(numbers.before_item()).keys() == saved.keys()  # set once: in every later item, too
