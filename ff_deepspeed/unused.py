"""Parameters that get no gradient in some iterations: where DeepSpeed keeps gradients, it steps them with an old one.

Under ZeRO-3, and where the optimizer is offloaded, gradients stay in a buffer that is never cleared. Where a parameter
gets none, the step takes what an earlier iteration left there. In gradient accumulation, where the first micro-batch
brings none, the others are added to that; with ZeRO 1 or 2, where the last one brings none, nothing new is taken.
Nothing says so, and the buffer is in no checkpoint. It changes during backward, so that a version cannot have it
either: a replacement would step with another gradient. Such a step is refused on every rank.

A parameter that has never had a gradient is fine: its place holds zeros everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ff_core.errors import UnsupportedError
from ff_core.state.words import some_of
from ff_deepspeed import versions
from ff_deepspeed.stage3 import layout

REFUSED = (
    "{what} got no gradient in iteration {iteration}{where}, after {they} had some before. {who} then steps with the "
    "gradient of an earlier iteration, which DeepSpeed keeps and a replacement of a dead rank would not have. Run the "
    "layer in every micro-batch and add its output times 0.0, or freeze {them}, or {instead}"
)
_OF_STAGE3 = {"who": "ZeRO-3", "instead": "use ZeRO stage 2"}
_OF_OFFLOAD = {"who": "An offloaded optimizer", "instead": 'leave out "offload_optimizer"'}


def watch(engine: Any) -> Unused | None:
    """Of an engine that keeps gradients; None for others."""
    optimizer = engine.optimizer
    if layout.is_stage3(optimizer):
        found = Unused(engine, lambda p: int(p.ds_id), (p for g in optimizer.fp16_groups for p in g), _OF_STAGE3)
        original = optimizer.partition_grads

        def partition_grads(params: list[Any], grads: list[Any]) -> Any:
            """What is reduced goes to the buffer: replaced in the first micro-batch, added in the others."""
            found.reduced(params, first=not optimizer.micro_step_id, last=True)
            return original(params, grads)

        optimizer.partition_grads = partition_grads
        return found
    if getattr(optimizer, "cpu_offload", False):
        found = Unused(engine, optimizer.get_param_id, (p for g in optimizer.bit16_groups for p in g), _OF_OFFLOAD)
        reduce = optimizer.reduce_independent_p_g_buckets_and_remove_grads

        def reduce_independent_p_g_buckets_and_remove_grads(param: Any, group: int) -> Any:
            """On every rank, whoever has the part. Only the last micro-batch writes what is stepped with."""
            last = versions.is_last_backward(optimizer)
            found.reduced([param], first=optimizer.micro_step_id <= 0, last=last)
            return reduce(param, group)

        optimizer.reduce_independent_p_g_buckets_and_remove_grads = reduce_independent_p_g_buckets_and_remove_grads
        return found
    return None


class Unused:
    """Of one engine: which parameters have had gradients. key: of a parameter, the same on all ranks."""

    def __init__(self, engine: Any, key: Callable[[Any], int], trained: Iterable[Any], words: dict[str, str]) -> None:
        self._engine, self._key, self._words = engine, key, words
        self._trained = {id(p): key(p) for p in trained}  # of an optimizer, which keeps them
        self._every = set(self._trained.values())
        self._ever: set[int] = set()  # in iterations that were stepped
        self._seen: set[int] = set()  # in this one
        self._now: set[int] = set()  # in this one, so that the step has them
        self._late: set[int] = set()  # not in its first micro-batch

    def reduced(self, params: list[Any], *, first: bool, last: bool) -> None:
        """Gradients of `params` have come. first, last: of the iteration's micro-batches."""
        keys = {self._key(p) for p in params}
        if not first:
            self._late |= keys - self._seen
        self._seen |= keys
        if last:
            self._now |= keys

    def check(self) -> None:
        """Before a step. Raises UnsupportedError, on every rank, if it would use an earlier iteration's gradient."""
        none, late = self._ever - self._now, self._late & self._ever
        if not none and not late:
            return
        stale = none or late
        part = "first" if not none else "last" if none & self._seen else ""
        names = [name for name, p in self._engine.module.named_parameters() if self._trained.get(id(p)) in stale]
        one = len(names) == 1
        raise UnsupportedError(
            REFUSED.format(
                what=some_of(names),
                iteration=self._engine.global_steps + 1,
                where=f"'s {part} micro-batch" if part else "",
                they="it" if one else "they",
                them="it" if one else "them",
                **self._words,
            )
        )

    def stepped(self) -> None:
        self._ever |= self._now
        self.drop()

    def drop(self) -> None:
        """Forget a half-done iteration."""
        for keys in (self._seen, self._now, self._late):
            keys.clear()

    def save(self) -> list[int] | None:
        """Keys of the parameters that have had gradients; None: all."""
        return None if self._ever == self._every else sorted(self._ever)

    def load(self, saved: list[int] | None) -> None:
        self._ever = set(self._every if saved is None else saved)
        self.drop()
