"""A loop of the user's own over a prepared loader: how a replacement finds its place in it.

    for epoch in range(epochs):
        for batch in loader:            # one pass
            ...
        evaluate(); save()

The script of a replacement runs from its begin. A pass that was over is empty there, and in the one that was going on
the loader is where the version was sealed: the replacement joins. What the script does between two passes is done
again before that, alone, with what is there: variables and random states get their values when it joins. It is not the
main process meanwhile, and saves nothing (ff_deepspeed.trainers.accelerate).

That needs a loop that the loader itself drives. One that asks with next(), as `for step in range(n)`, would count its
iterations from the begin: it is refused before training, by its line.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ff_core.errors import UnsupportedError
from ff_core.state import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from ff_deepspeed.protection import Protection

log = logging.getLogger("ff_deepspeed")

_IN_A_LOOP = ("FOR_ITER", "SEND")  # of `for`, of `yield from`

NO_LOADER = (
    "{line}: the batches of this training come from no DataLoader: after a failure a replacement could not find its "
    "batch again. {remedy}"
)
DISPATCHED = (
    "{line}: rank 0 loads the batches of all ranks (dispatch_batches): after a failure a replacement could not find "
    "its batch again. Give Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False)). Or: {remedy}"
)
ASKED = (
    "{line}: the loop asks its loader with next(): a replacement would count its iterations from the begin. Loop over "
    "the loader, `for batch in loader`. Or: {remedy}"
)
UNSEEN = (
    "{line}: the loader fetches ahead, and what is given to the model has neither the memory nor the values of one of "
    "its batches: after a failure a replacement could not find its batch again. Give the model tensors of the batch. "
    "Or: {remedy}"
)
REMEDY = (
    "change two lines: `for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` "
    'inside; or train unprotected: "ff_failover": {"enabled": false}'
)


class Passes:
    """Of one protected engine whose loaders accelerate has prepared; `ff_deepspeed.client.LibraryLoop`."""

    def __init__(self, protection: Protection) -> None:
        self._p = protection
        self._begun: Counter[int] = Counter()  # loader -> passes that the script has begun
        self._epochs: dict[int, int] = {}  # loader -> what it counts itself
        self._first: dict[int, int] | None = None  # _begun when training began
        self._obstacle: str | None = None  # words about the last loader that was asked
        self._line = ""

    # ---- see LibraryLoop --------------------------------------------------------------------------------------------

    def begins(self, fed: bool, seen: bool, may_restart: bool) -> None:
        """Raises UnsupportedError."""
        words = self._obstacle if fed or self._obstacle == DISPATCHED else NO_LOADER
        if words is None and not seen:
            words = UNSEEN
        if words is None:
            return
        said = words.format(line=self._line or frames.line(), remedy=REMEDY)
        if not may_restart:
            raise self._p.fail(UnsupportedError(said))
        log.warning("%s. After a failure the whole script starts again (--max-restarts)", said)

    def save(self) -> dict[str, Any]:
        if self._first is None:
            self._first = dict(self._begun)
        return {
            "begun": dict(self._begun),
            "first": dict(self._first),
            "epochs": dict(self._epochs),
            "can_be_entered": self._obstacle is None,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self._first = saved["first"]

    # ---- passes -----------------------------------------------------------------------------------------------------

    def iterate(self, original: Callable[[Any], Iterator[Any]], loader: Any, number: int) -> Iterator[Any]:
        """iter(loader), of a loader whose number is `number`. original: accelerate's own."""
        self._begun[number] += 1
        place = self._place(number)
        if place is not None and self._begun[number] >= place["first"][number]:
            if self._begun[number] < place["begun"][number]:
                self._p.pass_over()
                return iter(())
            if self._begun[number] == place["begun"][number]:
                loader.set_epoch(place["epochs"][number])
                self._p.go_on_from_memory()
        return self._watched(original(loader), loader, number)

    def dispatched(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """iter(loader), of one that gets its batches from rank 0."""
        for item in iterator:
            if self._first is None:
                self._obstacle, self._line = DISPATCHED, frames.line()
            yield item

    def _place(self, number: int) -> dict[str, Any] | None:
        """In a replacement: what save() gave, if a pass over this loader was going on."""
        session = self._p.session
        if not session.is_newcomer:
            return None
        saved = session.saved_scalars()
        if saved["data"].get("start") or saved["data"]["loader"] != number or not saved["client"]["led"]:
            return None
        found: dict[str, Any] = saved["client"]["loop"]
        return found if found["can_be_entered"] else None

    def _watched(self, iterator: Iterator[Any], loader: Any, number: int) -> Iterator[Any]:
        while True:
            if self._first is None:
                self._obstacle, self._line = None if _drives() else ASKED, frames.line()
            self._epochs[number] = loader.iteration
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item


def _drives() -> bool:
    """Whether the script's loop is driven by the iterator that is asked now."""
    for frame in frames.of_script():
        if frame.f_code.co_name == "__next__":
            continue  # an iterator of the script's own around it
        at = frame.f_lasti
        name = next((each.opname for each in dis.get_instructions(frame.f_code) if each.offset == at), "")
        if name not in _IN_A_LOOP:
            return False
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            return True
    return False
