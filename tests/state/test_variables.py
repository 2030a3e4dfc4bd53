"""Variables of a script, in a process that dies, in its replacement, and in a survivor that repeats an iteration."""

from __future__ import annotations

import itertools
import random
import types
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ff_core.state import codec, covered, frames, spaces
from ff_core.state.space import running
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
        with running() as functions:
            held = dict(frames.locals_of(functions["script()."]))
        kept = {name: value for name, value in held.items() if name not in ("look", "steps", "number", "late", "_")}
        digest = {name: plain(value) for name, value in kept.items() if not isinstance(value, types.FunctionType)}
        return digest | {"noise": repr(kept["noise"].getstate()), "numbers": repr(kept["numbers"]), "COUNT": COUNT,
                         "rates": repr(kept["rates"].__reduce__()[2:]), "seen": Stopper.seen,
                         "draws": kept["draws"].get_state().tolist(), "gradient": plain(kept["weight"].grad),
                         "more": kept["more"].__closure__[0].cell_contents}  # fmt: skip

    script(back + 1, look)
    assert told == []
    assert {name: value for name, value in seen[back + 1].items() if value != seen[back][name]} == {}


def test_numbers_and_texts_that_have_changed_since_a_version() -> None:
    """Of a script that went on by itself: tensors may be batches, what is as it was is not named."""
    mine = Variables()
    count, name, losses, batch, same = 0, "warm", [0.5], torch.zeros(2), {"a": [1]}
    mine.begin()
    count, late = 1, "new"
    saved = sent(mine.save())

    def changed() -> list[str]:
        return sorted(path.rpartition(".")[2] for path in mine.changed_since(saved) if path.startswith("test_numbers"))

    assert changed() == []
    count += 1
    assert changed() == ["count"]
    name, late, batch = "main", "newer", batch + 1
    losses.append(0.25)
    same["a"] = [1]
    assert changed() == ["count", "late", "losses", "name"]
    assert count and name and late and batch.sum()


def lazy(first: int, versions: dict[int, dict[str, Any]], steps: int = 3) -> list[Any]:
    """A loop that makes something of its first batch. It begins behind batch `first`, in the place of a dead rank if
    that is not 0. Gives what it has at the end."""
    mine, scale, table, drawn = Variables(), None, dict[int, int](), None
    for number in range(first, steps):
        # Here it asks for a batch.
        if number == first == 0:
            mine.asked(Adapter())
        elif number == first:
            mine.begin(versions[first]["functions"])
            assert mine.load(versions[first], repeats=False)[0] == []
        else:
            versions[number] = sent(mine.save())
        if number == 0:
            scale, drawn = number + 0.5, random.Random(number)
        table.setdefault(number % 2, len(table))
        if number == 0:
            mine.begin(after_asked=True)  # in the first engine(...)
    assert isinstance(drawn, random.Random)
    return [scale, table, drawn.random()]


class Adapter:
    def hyperparameters(self) -> list[dict[str, Any]]:
        return []


def test_what_a_script_makes_of_its_first_batch_was_not_made_on_the_way() -> None:
    versions: dict[int, dict[str, Any]] = {}
    right = lazy(0, versions)
    for first in (1, 2):
        assert lazy(first, versions) == right


def around(mine: Variables) -> Iterator[int]:
    count = 0
    while True:
        if count == 0:
            mine.asked(Adapter())  # the loop asks for its first batch, through this generator
        count += 1
        yield count


def test_a_generator_around_the_loader_rests_when_training_begins() -> None:
    mine, losses = Variables(), [0]
    for number in around(mine):
        losses.append(number)
        if number == 2:
            break
        mine.begin(after_asked=True)  # in the first engine(...)
    assert {path.rpartition(".")[2] for path in mine.save()["changed"]} >= {"losses"}
    assert not any(path.startswith("around") for path in mine.save()["changed"])


def test_a_write_that_torch_does_not_count_is_seen_in_every_version() -> None:
    mine = Variables()
    average, table, far = torch.zeros(4), np.zeros(300_000), 299_999
    mine.begin()
    for _ in range(17):
        assert sent(mine.save())["changed"] == {}
    average.data.add_(1)
    table[far] = 1  # in no sample of such an array
    changed = sent(mine.save())["changed"]
    assert sorted(path.rpartition(".")[2] for path in changed) == ["average", "table"]


class Driver:
    """An object of a library."""

    def __init__(self, began_at: int) -> None:
        self.began_at, self.total, self.writer, self.gone = began_at, torch.zeros(()), object(), {"a": [1]}
        self.data = [began_at]


def test_attributes_of_a_library_s_object_are_saved_whether_they_have_changed_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replacement enters a library's loop on another way: what it has there says nothing."""
    monkeypatch.setattr(spaces, "_of_libraries", {})
    theirs, mine = Driver(0), Driver(7)
    spaces.look_into("the driver.", theirs, frozenset({"data"}))
    dead = Variables()
    dead.begin()
    theirs.total += 3
    saved = sent(dead.save())
    spaces.look_into("the driver.", mine, frozenset({"data"}))
    mine.gone["b"] = [2]
    total, writer, entered = mine.total, mine.writer, Variables()
    entered.begin()
    lost, _ = entered.load(saved, repeats=False)
    assert not [path for path in lost if "driver" in path]
    assert (mine.began_at, mine.total.item(), mine.gone) == (0, 3.0, {"a": [1]})
    assert mine.writer is writer and mine.data == [7] and total.item() in (0.0, 3.0)
