"""A data loader that can go back to batches it has handed out, and forward to where a dead rank was.

Position in the data = how the iterator was begun (states of the random generators then) and how many micro-batches were
consumed. A survivor goes back by handing kept groups out again, each with the generator states that followed its
fetch. A newcomer goes forward by beginning an iterator from the same states and consuming as many micro-batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ff_core.errors import FailoverError
from ff_core.state import rng
from ff_deepspeed import batch as batches_

log = logging.getLogger("ff_deepspeed")

DROPPED = "the last %d micro-batches are dropped: an iteration takes %d (gradient_accumulation_steps)"


@dataclass(slots=True)
class Kept:
    """A group that was handed out. batches: None when the loader had ended. consumed: micro-batches up to its end."""

    batches: list[Any] | None
    rng_after: dict[str, Any]
    consumed: int
    marks: tuple[int, ...]
    spoilt: bool = False


class ReplayableLoader:
    """Groups of `group` micro-batches from `loader`, numbered by the version that training on them makes.

    limit: at most this many groups; None: until the loader ends.
    """

    def __init__(self, loader: Iterable[Any], group: int, limit: int | None = None) -> None:
        self._loader = loader
        self._group = group
        self._limit = limit
        self._iterator: Iterator[Any] | None = None
        self._begun: dict[str, Any] | None = None  # generator states when the iterator was made
        self._consumed = 0
        self._kept: dict[int, Kept] = {}
        self._copying = False

    def position(self, version: int) -> dict[str, Any]:
        """Where the data stands when `version` is complete: plain values for `seek` in another process."""
        kept = self._kept.get(version)
        if kept is None:  # nothing handed out yet, or not by this object
            return {"begun": self._begun, "consumed": self._consumed}
        return {"begun": self._begun, "consumed": kept.consumed}

    def fetch(self, version: int) -> list[Any] | None:
        """The group for `version`, None at the end. Leaves the random generators as they were after its first fetch.

        Raises FailoverError if the group must be handed out again but the loop's body has overwritten its tensors.
        """
        kept = self._kept.get(version)
        if kept is None:
            return self._fetch_new(version)
        if kept.batches is not None and (kept.spoilt or batches_.marks(kept.batches) != kept.marks):
            raise FailoverError(
                f"the batch of iteration {version} is needed again, but the loop wrote into its tensors: "
                "copy a batch before changing it in place"
            )
        rng.restore(kept.rng_after)
        return self._hand_out(kept)

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

    def seek(self, position: dict[str, Any]) -> None:
        """Go to `position` of another process, consuming what lies before it; only before anything was handed out.

        Changes the random generators. Raises FailoverError if the loader ends before.
        """
        if self._consumed > position["consumed"]:  # another failure took the job further back
            self._iterator, self._consumed = None, 0
        if position["begun"] is None:
            return
        if self._iterator is None:
            self._restore_generators(position["begun"])
            self._begin()
        while self._consumed < position["consumed"]:
            if next(self._iterator, _END) is _END:  # type: ignore[arg-type]
                raise FailoverError(
                    f"the data loader of the replacement ended after {self._consumed} micro-batches; the dead "
                    f"rank had consumed {position['consumed']}: the data differ between two starts of the script"
                )
            self._consumed += 1

    def _fetch_new(self, version: int) -> list[Any] | None:
        fetched: list[Any] = []
        if self._limit is None or self._consumed // self._group < self._limit:
            if self._iterator is None:
                self._begin()
            while len(fetched) < self._group:
                item = next(self._iterator, _END)  # type: ignore[arg-type]
                if item is _END:
                    break
                fetched.append(item)
                self._consumed += 1
        complete = len(fetched) == self._group
        if fetched and not complete:
            log.info(DROPPED, len(fetched), self._group)
        batches = fetched if complete else None
        kept = Kept(batches, rng.capture(), self._consumed, batches_.marks(batches))
        self._kept[version] = kept
        return self._hand_out(kept)

    def _hand_out(self, kept: Kept) -> list[Any] | None:
        if kept.batches is None:
            return None
        return batches_.clone(kept.batches) if self._copying else batches_.share(kept.batches)

    def _begin(self) -> None:
        self._begun = {"rng": rng.capture(), "own": [g.get_state() for g in self._own_generators()]}
        self._iterator = iter(self._loader)

    def _restore_generators(self, begun: dict[str, Any]) -> None:
        rng.restore(begun["rng"])
        for generator, state in zip(self._own_generators(), begun["own"], strict=True):
            generator.set_state(state)

    def _own_generators(self) -> list[torch.Generator]:
        """The torch.Generators that the loader and its samplers were given, each once."""
        found: dict[int, torch.Generator] = {}
        owners = [self._loader, getattr(self._loader, "batch_sampler", None)]
        owners += [getattr(owner, name, None) for owner in owners for name in ("sampler", "data_sampler")]
        for owner in owners:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
        return list(found.values())


_END = object()
