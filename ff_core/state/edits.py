"""Weights that a script writes outside of the optimizer step: a clamp, an average swapped in, a layer set by hand.

The copy of a version begins when its step ends, and weights in a low precision are rebuilt from the masters. Both are
wrong if the script writes in between. `Edits` looks at the weights right behind the step and again before the next
one: at torch's version counters in every iteration, and at the contents in the first 16 and then in every 16th.
(Counters do not see what is written through `.data`.) On a device the comparison is read one step later, so that
nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ff_core.state.checksums import sums as sums_of

_EVERY = 16

Named = tuple[str, torch.Tensor]


class Edits:
    """tensors: gives (name, live tensor) of everything that only the step may change, in the same order each time."""

    def __init__(self, tensors: Callable[[], Iterable[Named]]) -> None:
        self._tensors = tensors
        self._counters: list[int] | None = None
        self._sums: torch.Tensor | None = None
        self._compared: tuple[list[str], torch.Tensor] | None = None  # on a device: read one step later

    def stepped(self, version: int) -> None:
        """The step that made `version` has just ended."""
        tensors = [tensor for _, tensor in self._tensors()]
        self._counters = [tensor._version for tensor in tensors]
        self._sums = sums_of(tensors) if version <= _EVERY or version % _EVERY == 0 else None

    def stepping(self) -> None:
        """The step begins: whatever writes from now on is the step, even one that a failure interrupts."""
        self._counters = self._sums = None

    def forget(self) -> None:
        """The tensors are about to be written by a recovery."""
        self._counters = self._sums = self._compared = None

    def found(self) -> list[str]:
        """Before the next step: names of tensors that were written since."""
        counters, sums = self._counters, self._sums
        compared, self._compared = self._compared, None
        wrong: list[str] = []
        if counters is not None:
            named = list(self._tensors())
            if len(named) != len(counters):
                return ["the list of parameters itself"]
            pairs = zip(named, counters, strict=True)
            wrong = [name for (name, tensor), counter in pairs if tensor._version != counter]
        if sums is not None:
            comparison = [name for name, _ in named], sums_of([tensor for _, tensor in named]) == sums
            if sums.device.type == "cpu":
                compared = comparison
            else:
                self._compared = comparison
        if compared is not None and not wrong:
            wrong = [name for name, same in zip(compared[0], compared[1].tolist(), strict=True) if not same]
        return wrong
