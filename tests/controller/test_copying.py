"""How the controller says which versions are copied, and what it makes of what ranks measured."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controller.harness import Job, running


def cost(
    job: Job, late_s: float, interval: int = 1, *, epoch: int | None = None, slowed_s: float | None = None
) -> None:
    """Every rank has measured `interval`, with iterations of a second."""
    for rank in job.ranks:
        job.from_rank(
            rank, "cost", epoch=job.state.epoch if epoch is None else epoch, interval=interval, fixed_s=0.001,
            late_s=late_s, clear=interval, iteration_s=1.0, slowed_s=slowed_s,
        )  # fmt: skip


def events(job: Job) -> list[dict[str, Any]]:
    return [fields for kind, fields in job.out.events if kind == "interval"]


def told(job: Job, name: str = "w") -> set[int]:
    return {message["interval"] for _, message in job.out.take(name)}


def test_a_configured_interval_is_said_from_the_start_and_never_changes() -> None:
    job = Job(settings={"interval": 3}).start()
    assert told(job, "placement") == {3}
    for version in (0, 3, 6):
        cost(job, 10.0, 3)
        job.commit(version)
        assert told(job) == {3}
    job.fail_over(1, 6)
    assert told(job, "verdict") == {3}
    (event,) = events(job)
    assert (event["interval"], event["most_lost"], event["why"]) == (3, 5, "as configured")


def test_what_ranks_measure_reaches_them_with_w_and_is_explained() -> None:
    job = Job().start()
    assert told(job, "placement") == {1}
    job.commit(0)
    cost(job, 2.5)
    job.commit(1)
    assert told(job) == {1}
    cost(job, 2.5)
    job.commit(2)
    assert told(job) == {4}
    event = events(job)[-1]
    assert (event["version"], event["interval"], event["was"], event["most_lost"]) == (3, 4, 1, 7)
    assert "stops rank 0 for 250.10% of its iterations of 1000 ms" in event["why"]
    assert "a death costs at most 7 finished iterations and the one that runs" in job.out.said[-1]
    job.commit(3)
    assert told(job) == {4} and job.controller.copying.schedule.next == 7


def test_a_trial_and_what_it_shows_are_explained() -> None:
    job = Job().start()
    for version in (0, 1, 2):
        job.commit(version)
        cost(job, 0.0)
    assert "for a while, to see what copies slow iterations down by" in events(job)[-1]["why"]
    assert "and what copies slow iterations down by is not known yet;" in events(job)[-1]["why"]
    for version in range(3, 30, 3):
        cost(job, 0.0, 3, slowed_s=0.039)
        job.commit(version)
    event = events(job)[-1]
    assert (
        event["interval"] == 4 and event["slowed_ms"] == pytest.approx(39.0) and event["fixed_ms"] == pytest.approx(1.0)
    )
    assert "copies slow iterations down by 39 ms" in event["why"] and "for a while" not in event["why"]


def test_a_failover_keeps_the_interval_and_forgets_what_was_measured() -> None:
    job = Job().start()
    for version in (0, 1, 2):
        job.commit(version)
        cost(job, 2.5)
    job.commit(3)
    assert told(job) == {1, 4}
    cost(job, 9.0, 4)
    job.fail_over(1, 3)
    assert told(job, "verdict") == {4} and job.controller.copying.schedule.next == 7
    cost(job, 9.0, 4, epoch=0)  # of the epoch that is over
    job.commit(3)
    cost(job, 9.0, 4)
    job.commit(7)
    assert told(job) == {4}


def test_the_hang_deadline_counts_iterations_not_copied_versions() -> None:
    job = running(settings={"interval": 10}, version=0)
    for version in (10, 20, 30):
        job.out.clock += 1000.0
        job.commit(version)
    assert job.state.hangs.deadline_s == 2000.0


def test_a_restart_begins_with_one_again() -> None:
    job = Job(max_restarts=1).start()
    for version in (0, 1, 2):
        job.commit(version)
        cost(job, 2.5)
    before: Any = job.controller.copying
    job.controller.restart_job("lost", set())
    job.spawned()
    job.out.sent.clear()
    job.start()
    assert job.controller.copying is not before and told(job, "placement") == {1}
