"""With our groups installed every operation gives what plain gloo gives."""

from __future__ import annotations

import pytest

from tests.comm import programs_ops
from tests.comm.harness import Job, run


@pytest.mark.parametrize("program", ["every_collective", "objects_and_batches", "functional_and_mesh"])
@pytest.mark.parametrize("world", [4])
def test_equals_plain_gloo(program: str, world: int) -> None:
    function = getattr(programs_ops, program)
    plain = run(world, function, swappable=False)
    ours = run(world, function)
    for rank in range(world):
        assert ours[rank] == plain[rank]


@pytest.mark.parametrize("program", ["every_collective", "objects_and_batches", "functional_and_mesh"])
@pytest.mark.parametrize("rank", [0, 2])
def test_replay_alone_equals_the_job(program: str, rank: int) -> None:
    """Every operation of these programs is repeated from its journal, by a process that talks to nobody."""
    out, unused, journal = run(4, programs_ops.journaled, program)[rank]
    assert unused == []
    with Job(4) as job:
        job.start(rank, programs_ops.journaled, program, solo=True, replay=journal)
        again, *rest = job.results()[0]
    assert rest == [[], journal]
    if program == "every_collective":  # sparse results are not kept
        assert again.pop("all_reduce sparse") != out.pop("all_reduce sparse")
    assert again == out
