"""DDP's bucket groups: what they remember of an iteration, and of the first one.

In its first iteration a bucket group counts how often each parameter's gradient becomes ready; from then on it starts
to reduce as soon as those "golden" counts are reached. A newcomer must not count anew: it would reduce later than the
others, in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ff_megatron import versions


def of(model: list[Any]) -> Iterator[Any]:
    """All bucket groups of the DDP chunks `model`."""
    for chunk in model:
        yield from chunk.bucket_groups
        yield from chunk.expert_parallel_bucket_groups


class GoldenCounts:
    """The counts of all bucket groups, read once."""

    def __init__(self, model: list[Any]) -> None:
        self._model = model
        self._known: dict[int, torch.Tensor] = {}

    def save(self) -> list[torch.Tensor | None]:
        """Per bucket group: counts in the order of its parameters (int32), None before its first iteration is over."""
        found: list[torch.Tensor | None] = []
        for number, group in enumerate(of(self._model)):
            if number not in self._known and not group.is_first_batch:
                golden = group.golden_per_param_grad_ready_counts
                counts = [golden.get(p, 0) for p in _parameters(group)]
                self._known[number] = torch.tensor(counts, dtype=torch.int32)
            found.append(self._known.get(number))
        return found

    def load(self, saved: list[torch.Tensor | None]) -> None:
        """Put `save()` of another process here. Groups that have counted already stay as they are."""
        for group, counts in zip(of(self._model), saved, strict=True):
            if counts is not None and group.is_first_batch:
                parameters = _parameters(group)
                group.golden_per_param_grad_ready_counts = {
                    p: count for p, count in zip(parameters, counts.tolist(), strict=True) if count
                }
                group.is_first_batch = False


def _parameters(group: Any) -> list[Any]:
    return [p for bucket in group.buckets for p in bucket.params_list]


class NoSync:
    """DDP's no_sync contexts, all of which can be closed.

    Pipeline schedules enter them by hand. One that an interrupted schedule left open closes when Python happens to
    collect that frame, possibly in the middle of a later iteration, where it would switch reduction on too early.
    """

    def __init__(self, model: list[Any]) -> None:
        self._open: list[AbstractContextManager[None]] = []
        for chunk in model:
            chunk.no_sync = self._tracked(chunk.no_sync)

    def _tracked(self, original: Callable[[], AbstractContextManager[None]]) -> Callable[[], Any]:
        @contextmanager
        def no_sync() -> Iterator[None]:
            context = original()
            context.__enter__()
            self._open.append(context)
            try:
                yield
            finally:
                self._close(context)

        return no_sync

    def _close(self, context: AbstractContextManager[None]) -> None:
        if context in self._open:
            self._open.remove(context)
            context.__exit__(None, None, None)

    def close(self) -> None:
        """Close every context that is open."""
        for context in list(self._open):
            self._close(context)


def reset(model: list[Any]) -> None:
    """Forget the interrupted iteration. Handles above all: a live one keeps the halted groups' sockets open."""
    for group in of(model):
        group.grad_reduce_handle = None
        group.param_gather_handle = None
        group.param_gather_dispatched = False
        group.per_param_grad_ready_counts = {}
        group.is_last_microbatch = True
        for name in versions.series().flags:
            setattr(group, name, False)
