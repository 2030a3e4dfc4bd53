"""Variables of a script, in a process that dies, in its replacement, and in a survivor that repeats an iteration."""

from __future__ import annotations

import itertools
import random
import types
import weakref
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ff_core.state import codec, covered, spaces, variables
from ff_core.state.variables import Variables

COUNT = 0  # a global name of the script


class Stopper:
    """An object of the script's own class."""

    seen = 0  # of the class

    def __init__(self) -> None:
        self.best, self.patience, self.window = float("inf"), 0, deque([1.0], maxlen=2)


def counter() -> Callable[[], int]:
    count = 0

    def one_more() -> int:
        nonlocal count
        count += 1
        return count

    return one_more


Look = Callable[[int], Any]


def script(steps: int, look: Look) -> dict[str, Any]:
    """A training loop; look(n) is called when iteration n is complete, 0: before the loop. Gives all of its state."""
    global COUNT
    COUNT, Stopper.seen = 0, 0
    stopper, losses, noise, draws = Stopper(), [0.0], random.Random(1), torch.Generator().manual_seed(2)
    model, lookup, nested = nn.Linear(2, 2), {"mean": torch.zeros(3)}, {"a": {"b": [1, torch.zeros(2)]}}
    weight, running, lazy, numbers = torch.ones(2, requires_grad=True), torch.zeros(()), None, itertools.count()
    table, hits, more, array, rates = [0] * 50, defaultdict(int), counter(), np.zeros(3), iter([0.1] * 50)
    options, stoppers, quiet = Namespace(step=0), [Stopper()], torch.zeros(4)
    with torch.no_grad():
        model.weight.zero_()
    look(0)
    for _ in range(steps):
        COUNT += 1
        number = COUNT
        stopper.best, stopper.patience = min(stopper.best, 1 / number), number
        stopper.window.append(number / 2)
        Stopper.seen += 1
        options.step += 1
        stoppers[0].patience += 2
        losses.append(number / 3)
        table[3] += 1
        hits[number % 2] += 1
        array += 1
        noise.random()
        torch.rand(3, generator=draws)
        more()
        next(numbers)
        next(rates)
        (weight * number).sum().backward()
        with torch.no_grad():
            model.weight.add_(1)
            lookup["mean"] += 1
            nested["a"]["b"][1] += 1  # type: ignore[operator]
            nested["a"]["b"][0] = number
            weight.sub_(weight.grad)  # type: ignore[arg-type]
        quiet.data.add_(1)
        running = 0.5 * running + number
        lazy = {"first": torch.full((2,), float(number))} if lazy is None else lazy
        lazy["first"] += 1
        late = number
        look(number)
    held = {name: value for name, value in locals().items() if name not in ("look", "steps", "number", "more", "_")}
    held |= {"COUNT": COUNT, "seen": Stopper.seen, "more": more(), "numbers": next(numbers), "rates": len(list(rates))}
    held |= {"noise": noise.random(), "draws": torch.rand(1, generator=draws), "gradient": weight.grad}
    return {name: plain(value) for name, value in held.items()}


def plain(value: Any) -> Any:
    if isinstance(value, Stopper):
        return [value.best, value.patience, list(value.window)]
    if isinstance(value, nn.Module):
        return value.weight.tolist()
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else repr(value)


def sent(saved: dict[str, Any]) -> dict[str, Any]:
    """As it comes to another process."""
    decoded: dict[str, Any] = codec.decode(codec.encode(saved))
    return decoded


def version(number: int, steps: int = 9) -> dict[str, Any]:
    """What a rank saves with version `number`."""
    mine, saved = Variables(), {}

    def look(at: int) -> None:
        if at == 0:
            mine.begin()
        took = sent(mine.save())
        if at == number:
            saved.update(took)

    script(steps, look)
    return saved


@pytest.fixture(autouse=True)
def nothing_else_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_replacement_goes_on_with_them(number: int) -> None:
    saved, lost = version(number), []

    def look(at: int) -> None:
        if at == 0:
            mine = Variables()
            mine.begin()
            lost.extend(mine.load(saved, repeats=True)[0])

    right = script(6, lambda at: None)
    now = script(6 - number, look)
    assert lost == []
    assert {name: now[name] for name in right if right[name] != now[name]} == {}


@pytest.mark.parametrize("back", [0, 1, 3])
def test_a_survivor_repeats_an_iteration_with_them(back: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The void iteration has changed all of them; behind it they are what they were in version `back`."""
    mine, saved, told, seen = Variables(), {}, [], list[dict[str, Any]]()
    monkeypatch.setattr(covered, "_savers", [seen, saved, told])

    def look(at: int) -> None:
        if at == 0:
            mine.begin()
        if at <= back:
            saved.clear()
            saved.update(sent(mine.save()))
        else:
            told.extend(mine.load(saved, repeats=True)[0])
        seen.append(shown())

    def shown() -> dict[str, Any]:
        with spaces.running() as functions:
            held = dict(spaces.locals_of(functions["script()."]))
        kept = {name: value for name, value in held.items() if name not in ("look", "steps", "number", "late", "_")}
        digest = {name: plain(value) for name, value in kept.items() if not isinstance(value, types.FunctionType)}
        return digest | {"noise": repr(kept["noise"].getstate()), "numbers": repr(kept["numbers"]), "COUNT": COUNT,
                         "rates": repr(kept["rates"].__reduce__()[2:]), "seen": Stopper.seen,
                         "draws": kept["draws"].get_state().tolist(), "gradient": plain(kept["weight"].grad),
                         "more": kept["more"].__closure__[0].cell_contents}  # fmt: skip

    script(back + 1, look)
    assert told == []
    assert {name: value for name, value in seen[back + 1].items() if value != seen[back][name]} == {}


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
            self.made = sent(self.mine.save())

    def back(self) -> list[str]:
        """A survivor begins an iteration anew."""
        self.lost, self.long = self.mine.load(self.made, repeats=True)
        return self.lost


def large_average(rank: Rank, steps: int) -> None:
    average = torch.zeros(variables.MOST_BYTES // 4 + 1)
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
        table = torch.zeros(variables.MOST_BYTES // 4 + 1)
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
    survivor, holder = Rank(0), Stopper()

    def body(number: int) -> None:
        holder.lazy = {"calls": number}  # type: ignore[attr-defined]

    loop(body, 1, survivor.look)
    assert survivor.back() == [] and not hasattr(holder, "lazy")


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
