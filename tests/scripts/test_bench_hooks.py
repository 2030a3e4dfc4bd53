"""Which part a moment counts for, and what is made of it. No job runs here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import timed_script  # noqa: E402
from bench import hooks  # noqa: E402
from bench.jobs import Training  # noqa: E402


def test_each_moment_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timed_script, "thread_time", lambda: now)
    clock = timed_script.Clock()

    def works(seconds: float) -> None:
        nonlocal now
        now += seconds

    def seal() -> None:
        works(2)
        clock.timed(works, "codec")(4)
        with pytest.raises(ZeroDivisionError):
            clock.timed(lambda: 1 / 0, "modes")()
        works(8)

    works(1)
    clock.timed(seal, "seal")()
    clock.end_iteration()
    works(16)
    clock.end_iteration()
    assert clock.iterations[0] == {"outside": 1, "seal": 10, "codec": 4, "modes": 0}
    assert clock.iterations[1] == {"outside": 16}


def test_parts_are_there() -> None:
    """What is timed by name still exists."""
    clock = timed_script.Clock()
    with pytest.MonkeyPatch.context() as patch:
        for names in timed_script.PARTS.values():
            for name in names:
                owner, last = timed_script.found(name)
                patch.setattr(owner, last, getattr(owner, last))  # put back at the end
        timed_script.time_parts(clock, "deepspeed")
        timed_script.time_parts(clock, "megatron")
        owner, last = timed_script.found("ff_core.state.codec:encode")
        getattr(owner, last)([1])
    clock.end_iteration()
    assert clock.iterations[0]["codec"] > 0


def test_summary() -> None:
    iterations = [{"modes": 0.001 * n, "seal": 0.002, "gate": 9.0, "outside": 9.0} for n in range(1, 101)]
    found = hooks.summary(iterations)
    assert set(found["parts_ms"]) == {"modes", "seal"} and found["iterations"] == 100
    assert found["parts_ms"]["modes"] == pytest.approx({"mean": 50.5, "median": 50.5, "p99": 99.0})
    assert found["all_ms"]["median"] == pytest.approx(52.5) and found["sameness_ms"]["median"] == pytest.approx(50.5)


def test_the_script_is_timed() -> None:
    command = hooks.TimedTraining(5, "deep").command(Path("out"))
    assert command[0].endswith("timed_script.py") and command[1:3] == ["out/hooks.json", "deepspeed"]
    assert command[3:] == Training(5, "deep").command(Path("out"))
