"""The data loaders that an unmodified script iterates over, and what its training loader handed out.

Every iterator of a torch DataLoader or of engine.training_dataloader is `Tracked`. The training loader is the one
that the first training forward has its inputs from; if that cannot be seen, the one that was asked last before.
Loaders are told apart by the order in which they were made, which is the same on every start of the script.

Handed out is not trained on: a loop may fetch ahead, in its own thread or another one. A version's position is behind
the last batch that has reached engine(...); what was handed out beyond it is handed out again by a replacement, made
from the random states that it was made from.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import batch as batches_
from ff_core.state import counting, rng
from ff_core.state.source import resolved
from ff_deepspeed import loop_words, matching
from ff_deepspeed.tracked import Tracked

log = logging.getLogger("ff_deepspeed")

NOWHERE: dict[str, Any] = {"loader": None, "begun": None, "consumed": 0, "ahead": [], "starts": []}
SKIPPED = (
    "the script of the replacement skipped batches that were consumed before the failure, and FFTrainer had done so "
    "already: let the script skip only `if not ff_core.is_replacement()`"
)
UNKNOWN = (
    "the loop fetches batches ahead, and what it gives to engine(...) has neither the memory nor the values of one of "
    "them: it cannot be told which batches a version was trained on. Let FFTrainer hand the batches out: "
    "`for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` inside"
)


@dataclass(slots=True)
class Handed:
    """A batch that the training loader handed out. position: of its iterator afterwards. given: what the script got.
    made_from: see `ff_core.state.source`."""

    batch: Any
    marks: tuple[int, ...]
    made_from: dict[str, Any]
    rng_after: dict[str, Any]
    position: dict[str, Any]
    given: Any


class Feed:
    """The batches of the training loader, numbered from 0 as they are handed out first."""

    def __init__(self) -> None:
        self._last: Tracked | None = None
        self._before: dict[int, tuple[Tracked, list[Handed]]] = {}  # loaders that were asked before it, by number
        self._training: int | None = None
        self._handed: list[Handed] = []
        self._base = 0  # number of _handed[0]
        self._next = 0  # number of the batch to hand out next
        self._used = 0  # batches that have reached engine(...)
        self._position = NOWHERE  # after the last of them
        self._ends: dict[int, tuple[int, dict[str, Any]]] = {}  # version -> _used and _position when it was sealed
        self._copying = False
        self._asked: Tracked | None = None  # the newest iterator over the training loader
        self._ahead: list[dict[str, Any]] = []  # newcomer: what the next batches are to be made from
        self._now: dict[str, Any] | None = None  # newcomer: what the loader's objects have behind them
        self._gone_to = False  # newcomer: went to its position, and has not trained yet
        self._lock = threading.RLock()  # a reader thread asks, too
        self._first = True  # no batch has reached engine(...) yet
        self.taken_back = 0  # batches that the script has had, and gets again
        self.runs_ahead = False  # more than the batch that is trained on was handed out

    def is_training(self, tracked: Tracked) -> bool:
        return tracked.loader == self._training

    def begin_training(self, version: int, inputs: Any = None) -> None:
        """The first training call (a forward with `inputs`, or a loader is asked), after `version`: the loader that
        `inputs` come from is the training loader, or the one that was asked last where that cannot be seen."""
        with self._lock:
            if self._last is not None and self._training is None:
                self._choose(inputs)
                self._training = self._last.loader
            # What the script took before, and does not train on, does not belong to the iteration that begins.
            number = self._number_of(inputs, by_value=self._next > 1)
            self._used = max(self._next - 1, 0) if number is None else number
            self._ends[version] = (self._used, self._position)

    def _choose(self, inputs: Any) -> None:
        assert self._last is not None
        asked, self._before = [(self._last, self._handed), *reversed(self._before.values())], {}
        for by_value in (False, True):
            for tracked, handed in asked:
                if matching.find(inputs, [kept.given for kept in handed], by_value=by_value) is not None:
                    self._take(tracked, handed)
                    return

    def sees(self, inputs: Any) -> bool:
        """Before training: whether it can be told which batch `inputs` are."""
        with self._lock:
            asked = [self._handed, *(handed for _, handed in self._before.values())]
            batches = [kept.given for handed in asked for kept in handed]
            return len(batches) < 2 or matching.find(inputs, batches, by_value=True) is not None

    def goes_on(self, inputs: Any) -> bool:
        """Before training: whether the loader that was asked last may be the one that `inputs` come from."""
        return self._last is not None and not self._last.source.ended and self.sees(inputs)

    def close(self) -> None:
        """The script is over."""
        with self._lock:
            if self._last is not None:
                self._last.source.release()

    def next(self, tracked: Tracked, own_thread: bool = True) -> Any:
        """The next batch, or one that must be handed out again. Raises StopIteration.

        own_thread: the training thread asks; another one leaves the random generators alone.
        """
        if own_thread and tracked.starts is None and self._training in (None, tracked.loader):
            tracked.starts, tracked.is_cycled = counting.look(tracked)
        with self._lock:
            self.runs_ahead |= not own_thread
            if self.is_training(tracked) and self._next < self._base + len(self._handed):
                return self._hand_out_again()
            if self._training is None and tracked is not self._last:
                self._turn_to(tracked)
            if self._training in (None, tracked.loader):
                self._asked = tracked
        before, item = self._fetch(tracked, own_thread)  # may wait for long: not with the lock held
        if self._training is not None and not self.is_training(tracked):
            return item
        with self._lock:
            given = batches_.clone(item) if self._copying else batches_.share(item)
            marks, position = batches_.marks(item), tracked.position()
            self._handed.append(Handed(item, marks, before, rng.capture(), position, batches_.share(given)))
            if self._next < self._base + len(self._handed) - 1:
                return self._hand_out_again()  # the training thread has gone back meanwhile
            self._next += 1
            return given

    def _turn_to(self, tracked: Tracked) -> None:
        """Before training: another iterator than before is asked."""
        if self._last is not None:
            self._before[self._last.loader] = self._last, self._handed
        again, handed = self._before.pop(tracked.loader, (None, []))
        self._take(tracked, handed if again is tracked else [])

    def _take(self, tracked: Tracked, handed: list[Handed]) -> None:
        self._last, self._handed = tracked, handed
        self._base, self._next, self._used = 0, len(handed), 0

    def _fetch(self, tracked: Tracked, own_thread: bool) -> tuple[dict[str, Any], Any]:
        """The iterator's next item, and what it was made from."""
        source = tracked.source
        if not self._ahead or not self.is_training(tracked):
            item = source.next()
            return source.last_made_from, item
        made_from, before = self._ahead.pop(0), rng.capture()
        source.make_from(made_from, draws=own_thread)
        item = source.next()
        if own_thread:
            rng.restore(before)
        if not self._ahead:
            source.put(self._now)
        return made_from, item

    def _hand_out_again(self) -> Any:
        kept = self._handed[self._next - self._base]
        if batches_.marks(kept.batch) != kept.marks:
            raise FailoverError(
                "a batch is needed again after a failure, but the script wrote into its tensors: copy a batch before "
                "changing it in place"
            )
        self._next += 1
        if not self.runs_ahead:
            rng.restore(kept.rng_after)
        given = batches_.clone(kept.batch) if self._copying else batches_.share(kept.batch)
        kept.given = batches_.share(given)
        return given

    def used(self, inputs: Any) -> None:
        """A training forward begins with `inputs`. Raises FailoverError if a newcomer's script has skipped batches by
        itself, or if it cannot be told which batch this is."""
        with self._lock:
            waiting = self._next - self._used
            number = self._number_of(inputs, by_value=waiting > 1)
            if self._gone_to and (number or (number is None and waiting > 2)):
                raise FailoverError(SKIPPED)
            self._gone_to = False
            first, self._first = self._first, False
            if number is None:
                if waiting > 1 and (first or self.runs_ahead):
                    raise FailoverError(UNKNOWN)
                number = self._next - 1
            self.runs_ahead |= number < self._next - 1
            if number < self._used:
                return  # trained on again, or no batch of a loader
            self._used = number + 1
            self._position = self._handed[number - self._base].position
            for kept in self._handed[: self._used - self._base]:
                kept.given = None

    def is_next(self, inputs: Any) -> bool:
        """Whether `inputs` are the batch that follows the last one that counts."""
        with self._lock:
            return self._number_of(inputs, by_value=True) == self._used

    def _number_of(self, inputs: Any, *, by_value: bool) -> int | None:
        """The number of the batch that `inputs` are, of those that were not trained on; None if that cannot be seen."""
        start = self._used - self._base
        candidates = [kept.given for kept in self._handed[start : self._next - self._base]]
        found = matching.find(inputs, candidates, by_value=by_value)
        return None if found is None else self._used + found

    @property
    def feeds(self) -> bool:
        """Whether a loader was asked for a batch before the first training forward."""
        return self._training is not None

    @property
    def is_cycled(self) -> bool:
        """Whether itertools.cycle() goes over the training loader."""
        return self.feeds and self._last is not None and self._last.is_cycled

    @property
    def is_asked(self) -> bool:
        """Whether a loader was asked for a batch so far."""
        return self._last is not None

    def position(self, asked: Tracked | None = None) -> dict[str, Any]:
        """Where the data stands after the batches that training has used.

        asked: what the script asks for the next one. If that is a new iterator, this is its begin: what the script did
        since the end of the one before is over.
        """
        with self._lock:
            ahead = self._handed[max(self._used - self._base, 0) : self._next - self._base]
            if asked is not None and not asked.source.consumed and not ahead:
                return {**resolved(asked.position()), "ahead": []}
            now = None if self._asked is None else self._asked.source.now()
            made_from = [kept.made_from for kept in ahead]
            return resolved({**self._position, "ahead": made_from, "now": now})

    def give_up(self, loader: int) -> None:
        """The script begins `loader` anew: what it was handed and has not trained on is of no use to it."""
        with self._lock:
            if loader == self._training:
                del self._handed[max(self._used - self._base, 0) :]
                self._next = min(self._next, self._used)

    def seal(self, version: int) -> None:
        """`version` is complete: all batches used so far are behind it."""
        with self._lock:
            self._ends[version] = (self._used, self._position)
            if not self._copying and any(batches_.marks(kept.batch) != kept.marks for kept in self._handed):
                self._copying = True
                log.warning(
                    "the script writes into its batches; from now on they are copied before they are handed out"
                )

    def forget(self, oldest_needed: int) -> None:
        """The job never goes back behind version `oldest_needed`."""
        with self._lock:
            for old in [version for version in self._ends if version < oldest_needed]:
                del self._ends[old]
            first = min((number for number, _ in self._ends.values()), default=self._base)
            drop = max(0, first - self._base)
            del self._handed[:drop]
            self._base += drop

    def can_return_to(self, version: int) -> bool:
        """Whether the batches that followed `version` can be handed out again."""
        return self._training is not None and version in self._ends and self._ends[version][0] >= self._base

    def return_to(self, version: int) -> None:
        """Hand out again what followed `version`."""
        with self._lock:
            self._used, self._position = self._ends[version]
            self.taken_back += self._next - self._used
            self._next = self._used
            for kept in self._handed[self._used - self._base :]:
                kept.given = batches_.share(kept.batch) if kept.given is None else kept.given

    def go_to(self, tracked: Tracked, position: dict[str, Any]) -> bool:
        """In a newcomer: bring `tracked` to `position`, if it is of that loader. False if not, or done before."""
        with self._lock:
            if self._training is not None or position["loader"] != tracked.loader or position["begun"] is None:
                return False
            tracked.go_to(position)
            self._gone_to, self._training = True, tracked.loader
            self._take(tracked, [])
            self._ahead, self._now, self._asked = list(position["ahead"]), position["now"], tracked
            self._position = tracked.position()
            starts, consumed = position["starts"], position["consumed"]
            tracked.starts = starts
        _count(tracked, [start + consumed for start in starts])
        return True

    def count_back(self, tracked: Tracked) -> None:
        """The script gets batches again."""
        taken_back, self.taken_back = self.taken_back, 0
        _count(tracked, [count - taken_back for count in counting.counts(tracked)])


def place(data: dict[str, Any]) -> tuple[Any, ...]:
    """Where in its data a version stands: enough to tell two versions apart. data: an unmodified script's position."""
    return data.get("start"), data["loader"], data["consumed"], (data.get("own") or {}).get("inputs")


def _count(tracked: Tracked, counts: list[int]) -> None:
    """What the enumerate() that asks for batches says next, if there is one."""
    try:
        counting.set_counts(tracked, counts)
    except counting.Unmovable as error:
        raise FailoverError(loop_words.ENUMERATED.format(what=error)) from None
