"""no_sync contexts that an interrupted schedule has left open, and golden counts carried to another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from ff_megatron import buckets, versions


class Chunk:
    """As DDP: one bucket group whose flag no_sync() turns off."""

    def __init__(self) -> None:
        self.parameters = [object(), object()]
        bucket = SimpleNamespace(params_list=self.parameters)
        self.group = SimpleNamespace(
            is_last_microbatch=True, is_first_batch=True, golden_per_param_grad_ready_counts={}, buckets=[bucket],
            grad_reduce_handle=1, param_gather_handle=1, param_gather_dispatched=True,
            per_param_grad_ready_counts={1: 1}, **dict.fromkeys(versions.series().flags, True),
        )  # fmt: skip
        self.bucket_groups, self.expert_parallel_bucket_groups = [self.group], []

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.group.is_last_microbatch = False
        try:
            yield
        finally:
            self.group.is_last_microbatch = True


def test_contexts_work_as_before() -> None:
    chunk = Chunk()
    buckets.NoSync([chunk])
    with chunk.no_sync():
        assert not chunk.group.is_last_microbatch
    assert chunk.group.is_last_microbatch


def test_a_context_left_open_does_not_close_later() -> None:
    chunk = Chunk()
    contexts = buckets.NoSync([chunk])
    left: Any = chunk.no_sync()
    left.__enter__()
    contexts.close()
    assert chunk.group.is_last_microbatch
    with chunk.no_sync():  # of the next attempt
        del left  # the interrupted schedule's frame is collected
        assert not chunk.group.is_last_microbatch


def test_reset_lets_go_of_handles() -> None:
    chunk = Chunk()
    buckets.reset([chunk])
    group = chunk.group
    assert (group.grad_reduce_handle, group.param_gather_handle, group.param_gather_dispatched) == (None, None, False)
    assert group.per_param_grad_ready_counts == {}
    assert not any(getattr(group, name) for name in versions.series().flags)


def test_golden_counts_reach_a_process_that_has_not_counted() -> None:
    old, new = Chunk(), Chunk()
    counts = buckets.GoldenCounts([old])
    assert counts.save() == [None]
    buckets.GoldenCounts([new]).load([None])
    assert new.group.is_first_batch
    old.group.golden_per_param_grad_ready_counts = {old.parameters[1]: 2}
    old.group.is_first_batch = False
    (saved,) = counts.save()
    assert torch.equal(saved, torch.tensor([0, 2], dtype=torch.int32))
    buckets.GoldenCounts([new]).load([saved])
    assert new.group.golden_per_param_grad_ready_counts == {new.parameters[1]: 2}
    assert not new.group.is_first_batch
