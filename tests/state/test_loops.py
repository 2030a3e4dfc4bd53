"""Where a `for` loop stands, and going on at the same place in another run of the same loops."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ff_core.state import frames, loops

LOOPS = """
class Guard:
    def __enter__(self): pass
    def __exit__(self, *error): pass


def nested(call):
    seen = []
    for name in ["a", "b"]:
        with Guard():
            for step in range(2, 7):
                seen.append((name, step, call()))
    return seen


def counted(call):
    held = []
    for number, step in enumerate(range(5)):
        def add(held=held): held.append(number)
        add()
        held.append(call())
    return held


def through(call):
    total = 0
    while total < 4:
        total += 1
        held = [inner(call) for _ in (1,)]
    return held


def inner(call):
    for step in (5, 6, 7):
        try:
            call()
        except ZeroDivisionError:
            pass
    return step


def over_a_generator(call):
    for step in (n for n in range(3)):
        call()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("script") / "looping_script.py"
    path.write_text(LOOPS)
    spec = importlib.util.spec_from_file_location("looping_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_this_file(path: Path) -> bool:
    return path.name == "looping_script.py"


@pytest.fixture(autouse=True)
def only_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "is_users", lambda file, module: of_this_file(Path(file)))


def places_at(function: Callable[..., Any], call: int) -> list[loops.Place]:
    """In the call with this number, from 0."""
    taken: list[Any] = []
    function(lambda: taken.append(loops.places()))
    place: list[loops.Place] = taken[call]
    return place


def loops_at(function: Callable[..., Any], call: int) -> list[Any]:
    return [found for _, found in places_at(function, call)]


def test_nested_loops(script: Any) -> None:
    assert loops_at(script.nested, 0) == [[["tuple_iterator", 1], ["range_iterator", 4]]]
    assert loops_at(script.nested, 6) == [[["tuple_iterator", 0], ["range_iterator", 3]]]


def test_another_run_goes_on_at_the_same_place(script: Any) -> None:
    wanted = places_at(script.nested, 7)
    calls = iter(range(100))

    def call() -> int:
        number = next(calls)
        if number == 0:
            loops.go_to(wanted)
        return number

    # The variables of the first turn are the script's own: others put them right.
    assert script.nested(call) == [("a", 2, 0), ("a", 5, 1), ("a", 6, 2)]


def test_enumerate_counts_on(script: Any) -> None:
    wanted = places_at(script.counted, 3)
    assert wanted[0][1] == [["enumerate of range_iterator", 1]]
    first = iter([True])
    held = script.counted(lambda: loops.go_to(wanted) if next(first, False) else None)
    assert held == [0, None, 4, None]


def test_loops_of_several_functions(script: Any) -> None:
    assert loops_at(script.through, 4)[-1] == [["tuple_iterator", 1]]


def test_a_generator_is_refused_by_its_line(script: Any) -> None:
    with pytest.raises(loops.UnseenLoopError, match=r"looping_script.py:\d+ goes over a generator"):
        script.over_a_generator(loops.places)


def test_other_loops_are_refused(script: Any) -> None:
    line, found = places_at(script.nested, 0)[0]
    for other in (found[:1], [found[0], ["range_iterator", 5]], [found[0], ["list_iterator", 1]]):
        with pytest.raises(loops.UnseenLoopError, match=r"the loops at .*, and were"):
            script.nested(lambda other=other: loops.go_to([[line, other]]))
    with pytest.raises(loops.UnseenLoopError, match=r"the script is at .*:\d+, and was at"):
        script.counted(lambda: loops.go_to([[line, found]]))


def test_a_python_that_is_not_known(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loops._can_be_seen.cache_clear()
    monkeypatch.setattr(loops, "_STACK", {})
    with pytest.raises(loops.UnseenLoopError, match="does not show"):
        script.nested(loops.places)
    loops._can_be_seen.cache_clear()
