"""An iterator over a data loader whose position another process can go to.

Position = how the iterator was begun (states of the random generators when it was made and before its first item, as
samplers draw their seed at either time) and how many items were consumed. Going there means beginning from the same
states and consuming as many items; that is exact for shuffling samplers, loader processes and data sets with state of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ff_core.errors import FailoverError
from ff_core.state import rng


class Source:
    """`make()` gives a fresh iterator over `loader`; it is called when the first item is wanted, or by `begin`."""

    def __init__(self, loader: Any, make: Callable[[], Iterator[Any]]) -> None:
        self.consumed = 0
        self._loader = loader
        self._make = make
        self._iterator: Iterator[Any] | None = None
        self._begun: dict[str, Any] | None = None

    def begin(self) -> None:
        """Make the iterator now. Idempotent."""
        if self._iterator is None:
            self._begun = {"rng": rng.capture(), "own": self._own_states(), "epoch": self._epoch(), "first": None}
            self._iterator = self._make()

    def next(self) -> Any:
        """The next item. Raises StopIteration at the end."""
        self.begin()
        assert self._iterator is not None and self._begun is not None
        if self._begun["first"] is None:
            self._begun["first"] = rng.capture()
        item = next(self._iterator)
        self.consumed += 1
        return item

    def position(self) -> dict[str, Any]:
        """Where the iterator stands: plain values for `seek` in another process, together with a count of items."""
        return {"begun": self._begun, "consumed": self.consumed}

    def seek(self, position: dict[str, Any]) -> None:
        """Go to `position`, consuming what lies before it. Changes the random generators.

        Raises FailoverError if the loader ends before.
        """
        if self.consumed > position["consumed"]:
            self._iterator, self.consumed = None, 0
        if position["begun"] is None:
            return
        if self._iterator is None:
            self._begin_as(position["begun"])
        while self.consumed < position["consumed"]:
            try:
                self.next()
            except StopIteration:
                raise FailoverError(
                    f"the data loader of the replacement ended after {self.consumed} batches; the dead rank had "
                    f"consumed {position['consumed']}: the data differ between two starts of the script"
                ) from None

    def _begin_as(self, begun: dict[str, Any]) -> None:
        rng.restore(begun["rng"])
        for generator, state in zip(self._own_generators(), begun["own"], strict=True):
            generator.set_state(state)
        if begun["epoch"] is not None and self._epoch() != begun["epoch"]:
            self._sampler().set_epoch(begun["epoch"])
        self.begin()
        assert self._begun is not None
        if begun["first"] is not None:
            rng.restore(begun["first"])
            self._begun["first"] = begun["first"]

    def _own_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._own_generators()]

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

    def _sampler(self) -> Any:
        return getattr(self._loader, "sampler", None) or getattr(self._loader, "data_sampler", None)

    def _epoch(self) -> int | None:
        """The epoch that a sampler with set_epoch() was told."""
        sampler = self._sampler()
        epoch = getattr(sampler, "epoch", None)
        return epoch if type(epoch) is int and callable(getattr(sampler, "set_epoch", None)) else None
