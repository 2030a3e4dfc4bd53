"""A listener sees a script's collectives by whatever name they are called, and can make each of them again."""

from __future__ import annotations

from tests.comm import programs_listener
from tests.comm.harness import Job, run

ONCE = {
    "name": ["allreduce"],
    "partial": ["allreduce"],
    "async": ["allreduce"],
    "deepspeed": ["allreduce"],
    "barrier": ["barrier"],
    "monitored": ["monitored_barrier"],
    "functional": ["allreduce"],
    "operator": ["allreduce"],
    "mesh": ["allreduce"],
    "coalesced": ["allreduce_coalesced"],
    "batch": ["launched", "launched"],
}


def test_every_way_leads_to_the_listener() -> None:
    for out in run(2, programs_listener.listened, []):
        assert out["same"], out["results"]
        assert {name: made for name, made in out["made"].items() if name in ONCE} == ONCE
        assert all(out["made"].values())
        assert out["end"] == "leaving", "also by a name that was bound before"


def test_what_was_interrupted_is_made_again() -> None:
    """Also inside of torch's dispatcher, through which an exception could not pass."""
    names = list(ONCE)[:10] + ["gather objects", "broadcast objects", "differentiable", "tensor"]
    with Job(2) as job:
        job.start_all(programs_listener.listened, names)
        every = ["name", "partial", "async", "deepspeed", "barrier", "monitored", "gather objects"]
        every += ["broadcast objects", "functional", "operator", "differentiable", "mesh", "tensor", "coalesced"]
        for number, name in enumerate(every, start=1):
            if name in names:
                job.hear(f"at {name}")
                job.halt(number)
                job.hear("dropped")
                job.tell(f"regroup {number}")
        for out in job.results():
            assert out["same"], out["results"]
