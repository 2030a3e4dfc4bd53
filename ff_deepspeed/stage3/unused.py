"""Parameters that get no gradient in some iterations: under ZeRO-3 DeepSpeed steps them with an old one.

It keeps gradients in a buffer that it never clears. Where a parameter gets none, the step takes what an earlier
iteration left there. In gradient accumulation, where the first micro-batch brings none, the others are added to that.
Nothing says so, and the buffer is in no checkpoint. It changes during backward, so that a version cannot have it
either: a replacement would step with another gradient. Such a step is refused on every rank.

A parameter that has never had a gradient is fine: its place holds zeros everywhere.
"""

from __future__ import annotations

from typing import Any

from ff_core.errors import UnsupportedError
from ff_core.state.words import some_of

REFUSED = (
    "{what} got no gradient in iteration {iteration}{where}, after {they} had some before. ZeRO-3 then steps with the "
    "gradient of an earlier iteration, which DeepSpeed keeps and a replacement of a dead rank would not have. Run the "
    "layer in every micro-batch and add its output times 0.0, or freeze {them}, or use ZeRO stage 2"
)


class Unused:
    """Of one engine: which parameters have had gradients."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        optimizer = engine.optimizer
        self._every = {p.ds_id for group in optimizer.fp16_groups for p in group}
        self._ever: set[int] = set()  # in iterations that were stepped
        self._now: set[int] = set()  # in this one
        self._late: set[int] = set()  # not in its first micro-batch
        original = optimizer.partition_grads

        def partition_grads(params: list[Any], grads: list[Any]) -> Any:
            """What is reduced goes to the buffer: replaced in the first micro-batch, added in the others."""
            new = {p.ds_id for p in params} - self._now
            if optimizer.micro_step_id:
                self._late |= new
            self._now |= new
            return original(params, grads)

        optimizer.partition_grads = partition_grads

    def check(self) -> None:
        """Before a step. Raises UnsupportedError, on every rank, if it would use an earlier iteration's gradient."""
        none, late = self._ever - self._now, self._late & self._ever
        if not none and not late:
            return
        stale = none or late
        names = [name for name, p in self._engine.module.named_parameters() if p.ds_id in stale]
        one = len(names) == 1
        raise UnsupportedError(
            REFUSED.format(
                what=some_of(names),
                iteration=self._engine.global_steps + 1,
                where="" if none else "'s first micro-batch",
                they="it" if one else "they",
                them="it" if one else "them",
            )
        )

    def stepped(self) -> None:
        self._ever |= self._now
        self.drop()

    def drop(self) -> None:
        """Forget a half-done iteration."""
        self._now.clear()
        self._late.clear()

    def save(self) -> list[int] | None:
        """ds_ids of the parameters that have had gradients; None: all."""
        return None if self._ever == self._every else sorted(self._ever)

    def load(self, saved: list[int] | None) -> None:
        self._ever = set(self._every if saved is None else saved)
        self.drop()
