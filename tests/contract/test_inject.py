"""The injection grammar, and what passing a point does."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from ff_core.contract.inject import ACTIONS, POINTS, Injection, InjectionPoints, parse, parse_all
from ff_core.errors import ConfigError


def test_the_form_of_the_manual() -> None:
    assert parse("kill rank=2 iteration=5 at=backward", 3) == Injection(3, "kill", 2, 5, "backward")


def test_every_action_at_every_point() -> None:
    for action in ACTIONS:
        for at in POINTS:
            assert parse(f"{action} rank=0 iteration=1 at={at}").at == at


def test_extras() -> None:
    assert parse("kill rank=1 iteration=2 at=step delay=0.25").delay_s == 0.25
    assert parse("kill rank=1 iteration=2 at=random seed=7").seed == 7
    assert parse("exit rank=1 iteration=2 at=step code=0").code == 0
    assert parse("corrupt-slot rank=1 iteration=2 at=step slot=own").slot == "own"


@pytest.mark.parametrize(
    ("text", "wrong", "allowed"),
    [
        ("", "nothing", "ACTION"),
        ("stab rank=1 iteration=1 at=step", "'stab'", "kill, raise, exit, corrupt-slot"),
        ("kill iteration=1 at=step", "no rank=", "rank"),
        ("kill rank=1 at=step", "no iteration=", "iteration"),
        ("kill rank=1 iteration=1", "no at=", "at"),
        ("kill rank=1 iteration=0 at=step", "iteration=0", "at least 1"),
        ("kill rank=-1 iteration=1 at=step", "rank=-1", "at least 0"),
        ("kill rank=one iteration=1 at=step", "rank=one", "whole number"),
        ("kill rank=1 iteration=1 at=lunch", "at=lunch", "forward, backward, step, after-step, copying, random"),
        ("raise rank=1 iteration=1 at=random", "at=random", "forward, backward, step, after-step, copying"),
        ("kill rank=1 iteration=1 at=step seed=3", "seed=3", "at=random"),
        ("kill rank=1 iteration=1 at=step delay=soon", "delay=soon", "seconds"),
        ("kill rank=1 iteration=1 at=step delay=nan", "delay=nan", "seconds"),
        ("kill rank=1 iteration=1 at=step code=3", "code=3", "delay"),
        ("exit rank=1 iteration=1 at=step code=256", "code=256", "at most 255"),
        ("kill rank=1 rank=2 iteration=1 at=step", "rank=2", "one rank="),
        ("kill rank=1 iteration=1 at=step now", "'now'", "KEY=VALUE"),
        ("kill rank= iteration=1 at=step", "'rank='", "KEY=VALUE"),
        ("corrupt-slot rank=1 iteration=1 at=step slot=any", "slot=any", "own, replica"),
        ("kill rank='1 iteration=1", "No closing quotation", "ACTION"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(text: str, wrong: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert wrong in message and "allowed" in message and allowed in message.partition("allowed")[2]


def test_ranks_of_the_job_only() -> None:
    texts = ["kill rank=0 iteration=1 at=step", "kill rank=4 iteration=1 at=step"]
    assert [i.id for i in parse_all(texts)] == [0, 1]
    with pytest.raises(ConfigError, match=r"rank=4.*0 to 3"):
        parse_all(texts, world_size=4)


def points(*texts: str, rank: int = 0) -> tuple[InjectionPoints, list[int]]:
    fired: list[int] = []
    return InjectionPoints(rank, parse_all(texts), fired.append), fired


def test_raise_fires_at_its_place_once() -> None:
    places, fired = points("raise rank=0 iteration=2 at=step")
    for at in POINTS:
        places.point(at, 1)
    places.point("forward", 2)
    assert fired == []
    with pytest.raises(RuntimeError, match="rank=0 iteration=2 at=step"):
        places.point("step", 2)
    places.point("step", 2)
    assert fired == [0]


def test_two_injections_at_one_place_fire_one_after_the_other() -> None:
    places, fired = points("raise rank=0 iteration=2 at=step", "raise rank=0 iteration=2 at=step")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            places.point("step", 2)
    places.point("step", 2)
    assert fired == [0, 1]


def test_exit_and_corrupt_slot() -> None:
    places, fired = points("corrupt-slot rank=0 iteration=1 at=forward", "exit rank=0 iteration=1 at=forward code=7")
    with pytest.raises(SystemExit) as caught:
        places.point("forward", 1)
    assert caught.value.code == 7 and fired == [0, 1]


def test_other_ranks_injections_are_ignored() -> None:
    places, fired = points("raise rank=1 iteration=1 at=forward")
    places.point("forward", 1)
    assert fired == []


KILLED = """
    import sys, time
    from ff_core.contract.inject import InjectionPoints, parse_all
    def say(line):  # in one piece: another thread says something, too
        print(line + "\\n", end="", flush=True)
    points = InjectionPoints(0, parse_all(sys.argv[1:]), lambda id: say(f"fired {id}"))
    for iteration in range(1, 40):
        for at in ("forward", "backward", "step", "after-step", "copying"):
            say(f"{iteration} {at}")
            points.point(at, iteration)
            time.sleep(0.01)
"""


def killed(*texts: str) -> list[str]:
    """Runs iterations of 50 ms; returns the lines printed until SIGKILL."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *texts], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return process.stdout.splitlines()


def test_kill_reports_then_dies_on_the_spot() -> None:
    assert killed("kill rank=0 iteration=3 at=backward")[-2:] == ["3 backward", "fired 0"]


def test_delayed_kill_lets_training_go_on() -> None:
    lines = killed("kill rank=0 iteration=3 at=backward delay=0.5")
    assert "3 step" in lines and "fired 0" in lines


def test_random_kill_falls_into_the_iterations_duration() -> None:
    lines = killed("kill rank=0 iteration=5 at=random seed=1")
    assert "fired 0" in lines
    last = int(lines[-2].split()[0] if lines[-1] == "fired 0" else lines[-1].split()[0])
    assert 5 <= last < 40
