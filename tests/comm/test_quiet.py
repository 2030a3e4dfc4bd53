"""After a halt a survivor waits until nothing of the old operations writes any more, and for nothing else."""

from __future__ import annotations

from tests.comm import programs_quiet
from tests.comm.harness import Job


def test_nothing_is_written_once_it_is_quiet() -> None:
    """Else a restored weight could be overwritten by the all-gather of an iteration that is void."""
    with Job(2) as job:
        job.start_all(programs_quiet.still_writing)
        job.hear("over", 0)
        job.tell("end")
        assert job.results()[0] == -1.0


def test_a_message_that_nobody_receives_is_not_waited_for() -> None:
    with Job(2) as job:
        job.start_all(programs_quiet.nobody_receives)
        job.hear("ready")
        job.wait_stuck(1)
        job.tell("give up")
        assert job.receive(0, "result") is True
