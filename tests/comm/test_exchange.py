"""Ranks tell each other about themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm import exchange
from tests.comm.harness import Worker, run


def compare(worker: Worker) -> Any:
    dist.init_process_group("gloo")
    rank = worker.rank
    told = exchange.gather_bytes(b"x" * 10 * rank)
    low, high = -(2**63), 2**63 - 1
    alike = exchange.Alike(torch.tensor([7, low, high, -1])).different()
    other = exchange.Alike(torch.tensor([7, low if rank else high, rank, -1 - rank])).different()
    return told, alike, other


def test_bytes_and_numbers() -> None:
    assert run(2, compare) == [([b"", b"x" * 10], [], [1, 2, 3])] * 2


def test_bytes_that_were_garbled_are_noticed() -> None:
    message = exchange._HEAD.pack(3, 5) + b"abc"
    with pytest.raises(exchange.Garbled):
        exchange._taken_out(message)
    with pytest.raises(exchange.Garbled):
        exchange._taken_out(b"\xff" * 40)
