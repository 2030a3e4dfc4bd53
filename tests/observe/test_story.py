from __future__ import annotations

from pathlib import Path

import pytest

from ff_core.observe.events import PHASES, Event, EventLog
from ff_core.observe.story import load_story, read_losses, tell
from tests.observe import jobs


def test_two_failovers(tmp_path: Path) -> None:
    jobs.two_failovers(tmp_path)
    story = load_story(tmp_path)
    assert (story.world_size, story.nodes, story.code, story.last_version) == (4, 2, 0, 40)
    assert story.end - story.start == pytest.approx(13.1)
    newer = [(life.rank, life.epoch, life.warm, life.code) for life in story.lives[4:]]
    assert newer == [(2, 1, True, 0), (0, 2, False, 0)]
    assert [life.code for life in story.lives[:4]] == [-9, 0, -9, 0]
    first, second = story.recoveries
    assert (first.dead, first.v_star, first.spare, second.spare) == ([2], 10, "warm", "cold")
    assert first.phases == jobs.PHASES
    assert list(first.phases) == list(PHASES)
    assert len(story.losses) == 40
    assert [note.kind for note in story.notes] == ["interval", "interval", "injection", "injection"]
    numbers = story.to_dict()
    assert numbers["failovers"][1]["total_s"] == 0.3
    assert numbers["last_version"] == 40


def test_what_is_covered_now_is_what_was_said_last() -> None:
    events = [
        Event(1.0, "training_start", {"coverage": "two nodes"}),
        Event(2.0, "coverage", {"text": "one node"}),
    ]
    assert [tell(events[:count]).coverage for count in range(3)] == ["", "two nodes", "one node"]
    assert [note.kind for note in tell(events).notes] == ["coverage"]


def test_last_job_of_a_directory_used_twice(tmp_path: Path) -> None:
    jobs.two_failovers(tmp_path)
    with EventLog(tmp_path) as log:
        log.emit("job_start", t=jobs.T0 + 100, world_size=2, nodes=1)
    story = load_story(tmp_path)
    assert (story.world_size, story.recoveries, story.code) == (2, [], None)


def test_a_restart_ends_the_processes_before_it() -> None:
    story = tell(
        [
            Event(1.0, "worker_start", {"rank": 0, "pid": 1}),
            Event(5.0, "restart", {"reason": "x", "restart": 1}),
            Event(6.0, "worker_start", {"rank": 0, "pid": 2}),
        ]
    )
    assert [(life.start, life.end) for life in story.lives] == [(1.0, 6.0), (6.0, None)]
    assert story.restarts == 1
    assert [note.kind for note in story.notes] == ["restart"]


def test_the_last_line_of_a_step_counts_and_torn_lines_do_not(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert read_losses(path) == [(1, 2.0), (2, 1.5)]
    assert read_losses(tmp_path / "none") == []


def test_a_failover_that_lacks_everything() -> None:
    story = tell([Event(9.0, "failover", {})])
    (recovery,) = story.recoveries
    assert set(recovery.phases.values()) == {0.0}
    assert recovery.began == 9.0
