"""Objects that a script has at several places, made in its loop: they are one again after a failure."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import shared
from ff_core.state.room import LostError
from tests.state.kinds import Look, Numbers, Scripts, alone_with

SCRIPTS = Scripts(lambda monkeypatch: alone_with(monkeypatch, ModuleType("some_library")))


class Node:
    def __init__(self, value: int, parent: Node | None) -> None:
        self.value, self.parent, self.children = value, parent, list[Node]()

    def depth(self) -> int:
        return 1 if self.parent is None else 1 + self.parent.depth()


class Meter:
    def __init__(self, name: str) -> None:
        self.name, self.total = name, 0


@SCRIPTS
def phases(look: Look, numbers: Numbers) -> Any:
    """A dict of the phase that runs is an entry of all phases, too."""
    done, current = list[dict[str, Any]](), dict[str, Any]()
    look(0)
    for n in numbers:
        if n % 2:
            current = {"losses": [], "first": n}
            done.append(current)
        current["losses"].append(n)
        look(n)
    return done


@SCRIPTS
def meters(look: Look, numbers: Numbers) -> Any:
    """An object of the script's own, under a name and in a dict."""
    all_of_them, active = dict[str, Meter](), Meter("none")
    look(0)
    for n in numbers:
        if n in (1, 5):
            active = Meter(f"from {n}")
            all_of_them[active.name] = active
        active.total += n
        look(n)
    return {name: meter.total for name, meter in all_of_them.items()}


@SCRIPTS
def windows(look: Look, numbers: Numbers) -> Any:
    """A window into a tensor and one into an array, written through."""
    tensor, array = torch.zeros(3, 4), np.zeros((3, 4))
    row, column = tensor[0], array[:, 0]
    look(0)
    for n in numbers:
        if n in (2, 5):
            row, column = tensor[n % 3, 1:], array[1:, n % 4]
        row += n
        column += n
        look(n)
    return tensor.tolist(), array.tolist()


@SCRIPTS
def nodes(look: Look, numbers: Numbers) -> Any:
    """A tree whose nodes know their parent."""
    root = at = Node(0, None)
    look(0)
    for n in numbers:
        child = Node(n * at.depth(), at)
        at.children.append(child)
        if n % 2:
            at = child
        look(n)

    def flat(node: Node) -> Any:
        return node.value, [flat(child) for child in node.children]

    return flat(root), at.depth()


@SCRIPTS
def apart_again(look: Look, numbers: Numbers) -> Any:
    """Two names of one list in every other iteration only."""
    one, other = [0], [1]
    kept = [one, other]
    look(0)
    for n in numbers:
        other = one if n % 2 else [n]
        one.append(n)
        other.append(-n)
        kept[1] = other
        look(n)
    return one, other, kept[1] is other, kept[0] is one


@SCRIPTS
def ids(look: Look, numbers: Numbers) -> Any:
    """A momentum under the id of a parameter, and a set of ids."""
    model, meter = torch.nn.Linear(2, 2), Meter("m")
    momentum, seen, of_meter, last = dict[int, float](), set[int](), {id(meter): 0}, 0
    look(0)
    for n in numbers:
        for p in model.parameters():
            momentum[id(p)] = momentum.get(id(p), 0.0) + n
        seen.add(id(model.weight) if n == 1 else id(meter))
        of_meter[id(meter)] += n
        last = model.bias.data_ptr()
        look(n)
    return [momentum[id(p)] for p in model.parameters()], len(momentum), of_meter[id(meter)], (
        seen == {id(model.weight), id(meter)} and last == model.bias.data_ptr()
    )  # fmt: skip


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_what_could_not_be_saved_is_not_referred_to() -> None:
    met, value = shared.Met(), [1]
    met.add(value, ["holder", "list", []])
    met.cut(0)
    assert met.again(value) is None


def test_a_view_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(LostError, match="what it is a part of is not there"):
        shared.make_view(None, "a text", [1], [1], 0)


def test_plain_values_of_a_script_that_look_like_ours_are_not_taken_for_it() -> None:
    entries = [[["contents", ["shared", 0, []]], "shown", None, 0, True]]
    assert shared.definitions(entries) == {}
