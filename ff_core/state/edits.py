"""Weights that a script writes outside of the optimizer step: a clamp, an average swapped in, a layer set by hand.

The copy of a version begins when its step ends, and weights in a low precision are rebuilt from the masters. Both are
wrong if the script writes in between. `Edits` looks at the weights right behind the step and again before the next
one: at torch's version counters in every iteration, and at the contents in the first 16 and then in every 16th.
(Counters do not see what is written through `.data`.) On a device the comparison is read one step later, so that
nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter, is_

import torch

from ff_core.errors import UnsupportedError
from ff_core.state.checksums import Changed, Contents
from ff_core.state.words import some_of

_EVERY = 16
_COUNTER = attrgetter("_version")

Named = tuple[str, torch.Tensor]


class Edits:
    """tensors: gives (name, live tensor) of everything that only the step may change, in the same order each time."""

    def __init__(self, tensors: Callable[[], Iterable[Named]]) -> None:
        self._named = tensors
        self._tensors: list[torch.Tensor] | None = None
        self._counters: list[int] = []
        self._contents: Contents | None = None
        self._compared: tuple[list[Named], Changed] | None = None  # on a device: read one step later
        self._places: list[int] | None = None  # where they were in the first of these steps

    def stepped(self, version: int) -> None:
        """The step that made `version` has just ended."""
        self._tensors = [tensor for _, tensor in self._named()]
        self._counters = list(map(_COUNTER, self._tensors))
        self._places = self._places or list(map(torch.Tensor.data_ptr, self._tensors))
        self._contents = Contents(self._tensors) if version <= _EVERY or version % _EVERY == 0 else None

    def stepping(self) -> None:
        """The step begins: whatever writes from now on is the step, even one that a failure interrupts."""
        self._tensors = self._contents = None

    def forget(self) -> None:
        """The tensors are about to be written by a recovery."""
        self._tensors = self._contents = self._compared = self._places = None

    def moved(self) -> list[str]:
        """Names of tensors that have other memory than at first: `.data = ...` does that, and no copy would see it."""
        named = list(self._named())
        if self._places is None or len(named) != len(self._places):
            return []
        return [name for (name, tensor), place in zip(named, self._places, strict=True) if tensor.data_ptr() != place]

    def refuse(self, *, edited: bool, remedy: str) -> None:
        """Before the next step: raises UnsupportedError if tensors were written, or moved, where they may not be.
        edited: the job has "weights_edited".  remedy: what the framework offers instead."""
        names = self.found()
        moved = self.moved() if names or edited else []
        if moved:
            raise UnsupportedError(
                f"the script gave {some_of(moved)} other memory (`.data = ...`), and copies read where a weight was "
                "when training began. Write into it instead: `.data.copy_(...)`, `.data.clamp_(...)`"
                + ("" if edited else f". {remedy}")
            )
        if not names:
            return
        some = some_of(names)
        if edited:
            raise UnsupportedError(
                f"the script wrote into {some} in the beginning of an iteration, before its optimizer step, when the "
                'last version was complete. With "weights_edited": true write behind engine.step(), in its iteration'
            )
        raise UnsupportedError(
            f"the script wrote into {some} outside of the optimizer step (a clamp, an average swapped in, a layer set "
            f"by hand). A copy that begins right behind the step may miss that. {remedy}"
        )

    def found(self) -> list[str]:
        """Before the next step: names of tensors that were written since."""
        compared, self._compared = self._compared, None
        if self._tensors is None:
            return [] if compared is None else _names(*compared)
        named = list(self._named())
        live = [tensor for _, tensor in named]
        if len(live) != len(self._tensors) or not all(map(is_, live, self._tensors)):
            return ["the list of parameters itself"]
        counters = list(map(_COUNTER, live))
        if counters != self._counters:
            pairs = zip(named, counters, self._counters, strict=True)
            return [name for (name, _), now, before in pairs if now != before]
        wrong = [] if compared is None else _names(*compared)
        if self._contents is not None and not wrong:
            changed = self._contents.changed()
            if changed.on_device():
                self._compared = named, changed
            else:
                wrong = _names(named, changed)
        return wrong


def _names(named: list[Named], changed: Changed) -> list[str]:
    return [named[place][0] for place in changed.places()]
