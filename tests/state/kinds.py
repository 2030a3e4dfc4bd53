"""Scripts whose variables are of some kind: run whole, with a replacement in the middle, and by a survivor.

A script is a function: it calls look(0) before its loop and look(n) behind iteration n, for n in `numbers`, and gives
what it has at its end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest

from ff_core.state import codec, covered, spaces
from ff_core.state.iterators import OfIterators
from ff_core.state.variables import Variables

Look = Callable[[int], Any]
Numbers = Iterable[int]
Script = Callable[[Look, Numbers], Any]


class Scripts(dict[str, Script]):
    """By name; to be put in front of each as a decorator. before: called before each of their tests."""

    def __init__(self, before: Callable[[pytest.MonkeyPatch], Any] = lambda monkeypatch: None) -> None:
        super().__init__()
        self._before = before

    def __call__(self, function: Script) -> Script:
        self[function.__name__] = function
        return function

    def tests(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """The two tests that each script is for. To be asked for behind all of them."""

        @pytest.mark.parametrize("name", self)
        def test_a_replacement_goes_on_with_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
            self._before(monkeypatch)
            assert replaced(self[name]) == ([], right(self[name]))

        @pytest.mark.parametrize("name", self)
        def test_a_survivor_repeats_an_iteration_with_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
            self._before(monkeypatch)
            assert repeated(self[name], monkeypatch) == ([], right(self[name]))

        return test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them


def alone_with(monkeypatch: pytest.MonkeyPatch, library: ModuleType) -> None:
    """No trainer of another test; `library` can be imported; iterators are looked at, as in a job."""
    monkeypatch.setattr(covered, "_trainers", [])
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setattr(spaces, "more", [OfIterators])


def right(script: Script) -> str:
    """What it has at its end when nothing fails."""
    return repr(script(lambda at: None, range(1, 7)))


def replaced(script: Script) -> tuple[list[str], str]:
    """The rank dies after iteration 3. What could not be put back, and what the replacement has at the end."""
    dead, saved, lost = Variables(), dict[str, Any](), list[str]()

    def look(at: int) -> None:
        if at == 0:
            dead.begin()
        saved.update(_sent(dead.save()))

    def arrive(at: int) -> None:
        if at == 0:
            mine = Variables()
            mine.begin()
            lost.extend(mine.load(saved, repeats=True)[0])

    script(look, range(1, 4))
    now = repr(script(arrive, range(4, 7)))
    return _of(script, lost), now


def repeated(script: Script, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """Iteration 4 is void, and done again by the same process."""
    mine, saved, lost, done = Variables(), dict[str, Any](), list[str](), list[int]()
    monkeypatch.setattr(covered, "_savers", [saved, lost, done])

    def look(at: int) -> None:
        if at == 0:
            mine.begin()
        done.append(at)
        if at == 4 and done.count(4) == 1:
            lost.extend(mine.load(saved, repeats=True)[0])
        else:
            saved.clear()
            saved.update(_sent(mine.save()))

    now = repr(script(look, [1, 2, 3, 4, 4, 5, 6]))
    return _of(script, lost), now


def _of(script: Script, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(script.__name__)]


def _sent(saved: dict[str, Any]) -> dict[str, Any]:
    """As it comes to another process."""
    decoded: dict[str, Any] = codec.decode(codec.encode(saved))
    return decoded
