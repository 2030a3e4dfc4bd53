"""What a replacement puts into the collectives of its initialisation: restored where ranks agree, else compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm.inputs import compared, fingerprint
from tests.comm import programs_journal
from tests.comm.harness import Job, run


def alone(rank: int, program: Any, *args: Any, replay: bytes) -> Any:
    with Job(2) as job:
        job.start(rank, program, *args, epoch=1, solo=True, replay=replay)
        return job.results()[0]


@pytest.mark.parametrize("init", ["env", "file", "tcp"])
def test_the_source_gets_back_what_the_dead_one_gave(init: str, tmp_path: Path) -> None:
    """Also by names that were bound before, and with objects of another length."""
    method = {"env": None, "file": f"file://{tmp_path}/rendezvous", "tcp": "tcp://127.0.0.1:1"}[init]
    job = run(2, programs_journal.agree, 7, method)
    assert job[0]["name"] == job[1]["name"] == "run-xxxxxxx"
    assert [out["share"] for out in job] == ["share 7 of 0", "share 7 of 1"]
    for rank in range(2):
        assert alone(rank, programs_journal.agree, 12, method, replay=job[rank]["journal"]) == job[rank]
        assert alone(rank, programs_journal.agree, 3, method, replay=job[rank]["journal"]) == job[rank]
    assert not (tmp_path / "rendezvous").exists(), "the job's own store is used"


@pytest.mark.parametrize("how", ["all_reduce", "reduce_scatter", "all_to_all"])
def test_a_sum_of_something_else_is_refused(how: str) -> None:
    journals = run(2, programs_journal.weigh, 5, how)
    assert isinstance(alone(0, programs_journal.weigh, 5, how, replay=journals[0]), bytes)
    message = alone(0, programs_journal.weigh, 6, how, replay=journals[0])
    assert message.startswith("JournalMismatch")
    for words in ("programs_journal.py:", "in weigh", "float32[3]", "other values", "is_replacement()", "broadcast"):
        assert words in message, message


def test_what_follows_a_large_result_that_differs_is_not_compared() -> None:
    journals = run(2, programs_journal.weigh, 5, "large")
    assert isinstance(alone(1, programs_journal.weigh, 6, "large", replay=journals[1]), bytes)


def test_what_is_compared() -> None:
    value = torch.ones(2)

    def reducing(op: Any) -> Any:
        options = dist.AllreduceOptions()
        options.reduceOp = op
        return options

    assert compared("allreduce", ([value], reducing(dist.ReduceOp.SUM))) == [value]
    for agreeing in (dist.ReduceOp.MIN, dist.ReduceOp.MAX):
        assert compared("allreduce", ([value], reducing(agreeing))) is None
    for op in ("broadcast", "allgather", "_allgather_base", "scatter", "barrier", "recv"):
        assert compared(op, ([value], [value], None)) is None
    assert compared("gather", ([], [value], None)) == [value]
    assert compared("gather", ([[value]], [value], None)) is None
    assert compared("send", ([value], 1, 0)) == [value]


def test_a_fingerprint_tells_shape_type_and_bits_apart() -> None:
    zeros = torch.zeros(4)
    others = [zeros.reshape(2, 2), zeros.int(), -zeros, torch.zeros(0), zeros.to(torch.bfloat16)]
    prints = {fingerprint([tensor]) for tensor in (zeros, *others)}
    assert len(prints) == 6
    assert fingerprint([torch.zeros(4, 2)[:, 0]]) == fingerprint([zeros])
    assert fingerprint([torch.tensor(float("nan"))]) == fingerprint([torch.tensor(float("nan"))])
