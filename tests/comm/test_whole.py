"""The group in which all ranks tell each other about themselves after a failure."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm import compat
from ff_core.comm.whole import WholeGroup


@pytest.fixture(autouse=True)
def four_ranks_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(compat, "device_of", lambda group: torch.device("cuda", 0))


def group(*ranks: int) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(ranks=ranks), closed=False)


ALL, OTHER, PAIR = group(0, 1, 2, 3), group(0, 1, 2, 3), group(0, 1)


def test_the_first_group_of_all_ranks_with_a_collective_is_chosen() -> None:
    whole = WholeGroup()
    with whole.choosing():
        for one, op in ((PAIR, "allreduce"), (OTHER, "send"), (ALL, "_allgather_base"), (OTHER, "allreduce")):
            whole.begins(one, op)
    whole.begins(OTHER, "allreduce")
    assert whole.get() is ALL


def test_nothing_of_other_threads_or_of_the_time_before_counts() -> None:
    """They come at another moment on each rank; all must choose alike."""
    whole = WholeGroup()
    whole.begins(ALL, "allreduce")
    with whole.choosing():
        thread = threading.Thread(target=whole.begins, args=(ALL, "allreduce"))
        thread.start()
        thread.join()
    assert whole.get() is None


def test_each_failure_chooses_anew() -> None:
    whole = WholeGroup()
    with whole.choosing():
        whole.begins(ALL, "allreduce")
    with whole.choosing():
        pass
    assert whole.get() is None


def test_a_group_that_the_script_has_destroyed_is_not_used() -> None:
    whole, gone = WholeGroup(), group(0, 1, 2, 3)
    with whole.choosing():
        whole.begins(gone, "allreduce")
    gone.closed = True
    assert whole.get() is None


def test_gloo_is_connected_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WholeGroup()
    with whole.choosing():
        whole.begins(ALL, "allreduce")
    monkeypatch.setattr(compat, "device_of", lambda group: torch.device("cpu"))
    assert whole.get() is None
