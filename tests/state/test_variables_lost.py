"""Variables that are not put back: too large, of a kind that cannot be set, somebody else's, or of the data."""

from __future__ import annotations

import logging
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ff_core.errors import UnsupportedError
from ff_core.state import codec, covered, given, spaces, start
from ff_core.state.variables import Variables
from tests.remedies import SHOWN

Look = Callable[[int], Any]


class Holder:
    """An object of the script's own class."""


@pytest.fixture(autouse=True)
def nothing_else_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


def loop(body: Callable[[int], None], steps: int, look: Look) -> None:
    """Of a script whose state is what `body` has bound."""
    look(0)
    for number in range(1, steps + 1):
        body(number)
        look(number)


class Rank:
    """A process: it saves version `until`, or goes on from `saved`."""

    def __init__(self, until: int = 0, saved: dict[str, Any] | None = None) -> None:
        self.mine, self.until, self.saved = Variables(), until, saved
        self.lost: list[str] = []
        self.long: list[str] = []
        covered._trainers.append(self)  # a test's, not the script's

    def look(self, number: int) -> None:
        if number == 0:
            self.mine.begin()
            if self.saved is not None:
                self.lost, self.long = self.mine.load(self.saved, repeats=True)
        if self.saved is None and number <= self.until:
            self.made = codec.decode(codec.encode(self.mine.save()))

    def back(self) -> list[str]:
        """A survivor begins an iteration anew."""
        self.lost, self.long = self.mine.load(self.made, repeats=True)
        return self.lost


def large_average(rank: Rank, steps: int) -> None:
    average = torch.zeros(start.MOST_BYTES // 4 + 1)
    loop(lambda number: average.add_(1), steps, rank.look)  # type: ignore[func-returns-value]


def test_what_is_too_large_is_refused_by_name() -> None:
    dead, replacement = Rank(2), Rank()
    large_average(dead, 2)
    assert len(dead.made["changed"]["large_average().average"]) == 5
    replacement.saved = dead.made
    large_average(replacement, 0)
    assert "large_average().average (Tensor: it cannot be saved)" in replacement.lost


def test_what_is_too_large_and_was_not_written_is_not_refused() -> None:
    dead = Rank(2)

    def still(rank: Rank, steps: int) -> None:
        table = torch.zeros(start.MOST_BYTES // 4 + 1)
        loop(lambda number: None, steps, rank.look)
        del table

    still(dead, 2)
    replacement = Rank(saved=dead.made)
    still(replacement, 0)
    assert replacement.lost == []


def schedule() -> Iterator[float]:
    rate = 1.0
    while True:
        yield rate
        rate *= 0.9


def with_generator(rank: Rank, steps: int) -> None:
    rates = schedule()
    loop(lambda number: next(rates), steps, rank.look)  # type: ignore[arg-type,return-value]


def test_a_generator_that_has_gone_on_is_refused_by_name() -> None:
    dead = Rank(2)
    with_generator(dead, 2)
    replacement = Rank(saved=dead.made)
    with_generator(replacement, 0)
    assert [word for word in replacement.lost if word.startswith("with_generator().rates (generator")]


def test_a_long_list_is_only_told() -> None:
    def history(rank: Rank, steps: int) -> None:
        losses = [0.0] * 20_000
        loop(losses.append, steps, rank.look)

    dead = Rank(2)
    history(dead, 2)
    replacement = Rank(saved=dead.made)
    history(replacement, 0)
    assert [word for word in replacement.lost if "losses" in word] == []
    assert [word.split(" (")[0] for word in replacement.long if "losses" in word] == ["history().losses"]


def test_what_goes_on_with_the_data_is_left_alone() -> None:
    """A batch that is handed out again is not fetched again: its position stays."""
    survivor, state = Rank(2), {"position": 0, "steps": 0}
    position, steps = [0], [0]

    def body(number: int) -> None:
        steps[0] += 1

    def look(number: int) -> None:
        survivor.look(number)
        position[0] += 10  # the next batch is fetched behind the version
        if number < 3:
            survivor.mine.fetched()
        else:
            assert [word for word in survivor.back() if "position" in word] == []

    loop(body, 3, look)
    assert (position, steps) == ([40], [2]) and state


def test_a_count_of_items_without_a_step_is_put_back() -> None:
    """Between the two fetches the loop's own code has run, and no version was made."""
    survivor, tries = Rank(9), [0]

    def body(number: int) -> None:
        tries[0] += 1

    def look(number: int) -> None:
        if number < 4:
            survivor.look(number)
            survivor.mine.fetched()
            tries[0] += number == 2
            survivor.mine.fetched()
        else:
            assert survivor.back() == []

    loop(body, 4, look)
    assert tries == [4]


def test_what_loop_and_data_both_change_is_refused_by_name() -> None:
    survivor, noise = Rank(2), random.Random(3)

    def look(number: int) -> None:
        survivor.look(number)
        noise.random()
        if number < 3:
            survivor.mine.fetched()
        else:
            assert [word for word in survivor.back() if ".noise (" in word or "().noise" in word]

    loop(lambda number: noise.random(), 3, look)  # type: ignore[arg-type,return-value]


def test_an_attribute_that_only_the_void_iteration_has_made_goes_away() -> None:
    survivor, holder = Rank(0), Holder()

    def body(number: int) -> None:
        holder.lazy = {"calls": number}  # type: ignore[attr-defined]

    loop(body, 1, survivor.look)
    assert survivor.back() == [] and not hasattr(holder, "lazy")


def test_more_than_can_be_looked_at_are_refused_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, at_rest = [1], [2], 3
    monkeypatch.setattr(start, "MOST_NAMES", 0)
    with pytest.raises(UnsupportedError, match=r"beyond the first 0 \(.*Keep them in lists or dicts.*<unsaved>"):
        Variables().begin(refuses=SHOWN)
    Variables().begin()
    assert "beyond the first 0" in caplog.text
    left_out = spaces.found_spaces(0, covered.Covered()).left_out
    names = {name.rpartition(".")[2] for name in left_out}
    assert {"first", "second"} <= names and "at_rest" not in names, (first, second, at_rest)


def test_more_owners_than_can_be_looked_at_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = [(f"main().log{number}", logging.getLogger(str(number))) for number in range(3)]
    assert given.OfGiven(looked).left_out == []
    monkeypatch.setattr(given, "_MOST", 2)
    assert given.OfGiven(looked).left_out == ["what it gives to main().log2"]


def test_what_is_saved_otherwise_is_left_out() -> None:
    rank, weights, group = Rank(1), torch.zeros(4), {"lr": 0.1}
    covered._trainers.extend([weights, group])
    view, own = weights[:2], torch.zeros(2)

    def body(number: int) -> None:
        weights.add_(1)
        view.add_(1)
        own.add_(1)
        group["lr"] = 0.2

    loop(body, 1, rank.look)
    names = {path.rpartition(".")[2] for path in rank.made["changed"]}
    assert "own" in names and not names & {"weights", "view", "group"}


def test_a_function_s_loss_is_not_kept_alive() -> None:
    kept, rank = [], Rank(9)

    def train() -> None:
        loss: Any = torch.ones(3)
        rank.look(0)
        rank.look(1)
        kept.append(weakref.ref(loss))
        loss = None
        rank.look(2)
        assert kept[0]() is None

    train()


def test_a_model_with_a_list_in_place_of_a_method() -> None:
    """As Megatron-LM's."""
    model = torch.nn.Linear(2, 2)
    model.buffers = []  # type: ignore[method-assign,assignment]
    rank = Rank(1)
    loop(lambda number: None, 0, rank.look)
    assert not covered.Covered().has(model) and rank.made["changed"] is not None
