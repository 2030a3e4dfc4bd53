"""Groups of micro-batches that can be handed out again.

A survivor goes back by handing out kept groups, each with the states of the random generators that followed its
fetch; a newcomer goes forward (see ff_core.state.source).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import batch as batches_
from ff_core.state import rng
from ff_core.state.source import Source, resolved

log = logging.getLogger("ff_deepspeed")

DROPPED = "the last %d micro-batches are dropped: an iteration takes %d (gradient_accumulation_steps)"


@dataclass(slots=True)
class Kept:
    """A group that was handed out. batches: None when the loader had ended. position: of the source afterwards."""

    batches: list[Any] | None
    rng_after: dict[str, Any]
    position: dict[str, Any]
    marks: tuple[int, ...]
    spoilt: bool = False


class ReplayableLoader:
    """Groups of `group` micro-batches from `loader`, numbered by the version that training on them makes.

    limit: at most this many groups; None: until the loader ends.
    """

    def __init__(self, loader: Iterable[Any], group: int, limit: int | None = None) -> None:
        self._source = Source(loader, lambda: iter(loader))
        self.group = group
        self._limit = limit
        self._kept: dict[int, Kept] = {}
        self._copying = False

    def release(self) -> None:
        """The loop is over."""
        self._source.release()

    @property
    def items(self) -> int:
        """That were consumed."""
        return self._source.consumed // self.group

    def begin(self) -> None:
        """Make the loader's iterator now, not with the first `fetch`. Idempotent."""
        self._source.begin()

    def position(self, version: int) -> dict[str, Any]:
        """Where the data stands when `version` is complete: plain values for `seek` in another process."""
        kept = self._kept.get(version)
        if kept is None:
            return resolved(self._source.position())
        if version == max(self._kept):  # else more was loaded since
            kept.position["now"] = self._source.now()
        return resolved(kept.position)

    def seek(self, position: dict[str, Any]) -> None:
        """Go to `position` of another process; only before anything was handed out. Changes the random generators."""
        self._source.seek(position)

    def fetch(self, version: int) -> list[Any] | None:
        """The group for `version`, None at the end. Leaves the random generators as they were after its first fetch.

        Raises FailoverError if the group must be handed out again but the loop's body has overwritten its tensors.
        """
        kept = self._kept.get(version)
        if kept is None:
            kept = self._kept[version] = self._fetch_new()
        else:
            if kept.batches is not None and (kept.spoilt or batches_.marks(kept.batches) != kept.marks):
                raise FailoverError(
                    f"the batch of iteration {version} is needed again, but the loop wrote into its tensors: "
                    "copy a batch before changing it in place"
                )
            rng.restore(kept.rng_after)
        if kept.batches is None:
            return None
        return batches_.clone(kept.batches) if self._copying else batches_.share(kept.batches)

    def keep_apart(self) -> None:
        """Before variables of the script are put back: a list that has a kept batch is written in place."""
        for kept in self._kept.values():
            if kept.batches is not None and batches_.marks(kept.batches) == kept.marks:
                kept.batches = batches_.clone(kept.batches)
                kept.marks = batches_.marks(kept.batches)

    def settle(self, version: int, oldest_needed: int) -> None:
        """The body of `version` is complete: see whether it wrote into its batch.

        Groups up to version `oldest_needed` are forgotten: the job never goes back behind it.
        """
        kept = self._kept.get(version)
        handed_out = None if kept is None or self._copying else kept.batches
        if kept is not None and handed_out is not None and batches_.marks(handed_out) != kept.marks:
            log.warning(
                "the loop writes into its batches; from now on they are copied before they are handed out, so that "
                "they can be handed out again after a failure"
            )
            self._copying = kept.spoilt = True
        for old in [v for v in self._kept if v <= oldest_needed]:
            del self._kept[old]

    def can_return_to(self, version: int) -> bool:
        """Whether `fetch(version + 1)` gives what followed `version`."""
        newest = max(self._kept, default=None)
        return newest is None or version == newest or version + 1 in self._kept

    def _fetch_new(self) -> Kept:
        fetched: list[Any] = []
        if self._limit is None or self._source.consumed // self.group < self._limit:
            while len(fetched) < self.group:
                try:
                    fetched.append(self._source.next())
                except StopIteration:
                    break
        complete = len(fetched) == self.group
        if fetched and not complete:
            log.info(DROPPED, len(fetched), self.group)
        batches = fetched if complete else None
        return Kept(batches, rng.capture(), self._source.position(), batches_.marks(batches))
