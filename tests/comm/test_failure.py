"""Whoever hangs in a collective gets free, and the groups connect anew."""

from __future__ import annotations

import time

import pytest

from tests.comm import programs_failure
from tests.comm.harness import Job

SOON_S = 30  # the groups' timeout is 100 s: being freed at all is the point, the margin is for busy machines


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_death_of_a_peer(loader_workers: int) -> None:
    with Job(3) as job:
        job.start_all(programs_failure.survive_a_death, loader_workers)
        job.hear("ready")
        job.kill(1)
        job.halt(1)
        job.start(1, programs_failure.survive_a_death, 0, epoch=1, solo=True)
        job.hear("dropped")
        job.tell("regroup 1")
        results = job.results()
    for rank, (seconds, *sums) in enumerate(results):
        assert seconds < SOON_S
        assert sums == ([6.0, 6.0] if rank == 1 else [6.0, 6.0, 4.0])


@pytest.mark.parametrize("first", [0, 1])
def test_halt_frees_every_kind_of_wait(first: int) -> None:
    """Also when the peer is halted first: its sockets are cut before we have heard of anything."""
    with Job(2) as job:
        job.start_all(programs_failure.halted_everywhere)
        for epoch in range(1, 14):
            job.hear(f"waiting {epoch}")
            job.halt(epoch, first)
            time.sleep(0.1)  # lets the other side meet the cut first; either order must do
            job.halt(epoch, 1 - first)
            job.hear("dropped")
            job.tell(f"regroup {epoch}")
        out = job.results()[0]
    assert len(out) == 13 + 6 + 1
    assert {name: interrupted for name, (interrupted, _) in out.items() if not interrupted} == {}
    assert max(seconds for _, seconds in out.values()) < SOON_S


@pytest.mark.parametrize("kind", ["all_reduce", "future", "send", "recv", "recv_any"])
def test_cut_in_the_middle_of_a_message(kind: str) -> None:
    """gloo forgets who waits for the rest of a message."""
    with Job(2) as job:
        job.start_all(programs_failure.cut_in_the_middle, kind)
        job.hear("ready")
        job.wait_stuck(1)  # a few megabytes of 256 have gone over
        job.halt(1, 0)
        epoch, seconds = job.receive(0, "result")
    assert epoch == 1 and seconds < SOON_S


def test_halt_frees_threads_and_backward() -> None:
    with Job(2) as job:
        job.start_all(programs_failure.waiting_thread)
        job.hear("waiting")
        job.halt(1)
        job.hear("dropped")
        job.tell("regroup 1")
        out = job.results()[0]
    assert out["backward"][0] == 1
    assert out["thread"][0] == 1
    assert out["sum"] == 3.0


def test_groups_are_closed_in_the_background() -> None:
    """A group of a lost operation takes half an hour to close: the training thread must never be the last to let go."""
    with Job(2) as job:
        job.start_all(programs_failure.closed_by)
        job.hear("ready")
        job.halt(1)
        assert job.results() == [["ff-close", "ff-close"]] * 2


def test_twenty_swaps_leak_nothing() -> None:
    with Job(2) as job:
        job.start_all(programs_failure.twenty_swaps)
        for epoch in range(1, 21):
            job.hear("in")
            job.halt(epoch)
            job.hear("dropped")
            job.tell(f"regroup {epoch}")
        for (descriptors, threads), (later_descriptors, later_threads) in job.results():
            assert later_descriptors <= descriptors
            assert later_threads <= threads


def test_newer_epoch_ends_a_dead_rendezvous() -> None:
    with Job(2) as job:
        job.start_all(programs_failure.dead_rendezvous)
        job.hear("up")
        job.halt(1)
        job.hear("regrouping", 0)
        job.halt(2)
        job.hear("dropped")
        job.tell("regroup 2")
        for rank, (epoch, seconds, *sums) in enumerate(job.results()):
            assert epoch == (2 if rank == 0 else None)
            assert seconds < SOON_S
            assert sums == [3.0, 3.0]


def test_original_error_without_a_failover() -> None:
    with Job(2) as job:
        job.start_all(programs_failure.no_failover, verdict_s=0.1)
        job.hear("done")
        job.tell("end")
        message = job.results()[0]
    assert "imed out" in message


def test_user_timeouts_hold_in_every_generation() -> None:
    with Job(2) as job:
        job.start_all(programs_failure.user_timeout)
        for epoch in (1, 2):
            job.hear("timed")
            job.halt(epoch)
            job.hear("dropped")
            job.tell(f"regroup {epoch}")
        seconds = job.results()[0]
    assert len(seconds) == 6  # all of them timed out, long before the 100 s of the default group
    assert max(seconds) < SOON_S
