"""Scripts of several exact loops: deaths between two of them, and where the later one begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.compare import injections
from tests.e2e.jobs import Job, fftrain
from tests.e2e.test_unseen import results, right

SCRIPT = str(Path(__file__).with_name("loops.py"))


def run(out: Path, *words: str, options: tuple[str, ...] = ()) -> Job:
    return fftrain(out, [SCRIPT, *words, "--result", str(out / "result.json")], *options, ranks=2)


def die(rank: int, place: str) -> tuple[str, ...]:
    return "--die", str(rank), place


def newcomers(job: Job) -> list[list[int]]:
    return [event["newcomers"] for event in job.of("failover")]


@pytest.mark.timeout(500)
def test_deaths_between_two_loops_and_where_the_later_one_begins(tmp_path: Path) -> None:
    """Rank 1 in an evaluation: both begin again at the loop's end. Rank 0 in the next loop's first iteration (the
    fifth version marks its beginning): the other goes on."""
    options = injections("0 6 backward")
    job = run(tmp_path, *die(1, "evaluation-1"), options=("--emulate-nodes", "2", *options))
    assert job.code == 0, job.stderr[-3000:]
    assert newcomers(job) == [[0, 1], [0]] and [event["v_star"] for event in job.of("failover")] == [4, 5]
    assert results(tmp_path) == right(script=SCRIPT)
    assert "rank 1 was killed by signal 9 after the training loop had ended on every rank: all processes" in job.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deaths_everywhere_behind_a_loop(tmp_path: Path) -> None:
    """Rank 0, just before another loop begins, behind the last one, where a spare waits, and another one meanwhile."""
    words = (*die(0, "evaluation-1"), *die(0, "mark-3"), *die(1, "mark-3"), *die(1, "evaluation-3"), "--short")
    job = run(tmp_path, *words, options=("--spares", "1", *injections("1 5 forward", "0 6 after-step")))
    assert job.code == 0, job.stderr[-3000:]
    found = newcomers(job)
    assert found[:3] == [[0, 1], [1], [0]] and found[3:] in ([[0, 1]] * 2, [[0, 1]] * 3)  # at one moment, or not
    assert results(tmp_path) == right("--short", script=SCRIPT)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_node_is_lost_between_two_loops(tmp_path: Path) -> None:
    job = run(tmp_path, *die(1, "node-evaluation-1"), options=("--emulate-nodes", "2"))
    assert job.code == 0, job.stderr[-3000:]
    assert newcomers(job) == [[0, 1]] and job.of("node_lost")
    assert results(tmp_path) == right(script=SCRIPT)


@pytest.mark.timeout(500)
def test_a_loop_that_is_left_by_break(tmp_path: Path) -> None:
    """Version 3 is the first loop's last, 4 the second one's mark, 7 its last. Rank 1 dies behind the first loop, and
    rank 0 before it leaves the second one, which the other leaves. Each time all do the last iteration again."""
    job = run(tmp_path, "--breaks", *die(1, "evaluation-1"), *die(0, "break-2"))
    assert job.code == 0, job.stderr[-3000:]
    assert newcomers(job) == [[0, 1]] * 2 and [event["v_star"] for event in job.of("failover")] == [2, 6]
    assert "rank 1 had left the training loop after iteration 7" in job.stderr
    assert results(tmp_path) == right("--short", script=SCRIPT)
