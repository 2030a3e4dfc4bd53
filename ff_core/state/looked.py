"""What a process knows of its script's variables, and what can be asked of them while it trains."""

from __future__ import annotations

import uuid
from types import GeneratorType
from typing import Any

from ff_core.contract.adapter import Remedies
from ff_core.state import entries, late, standard, values, variable_words
from ff_core.state.by_loading import ByLoading
from ff_core.state.captured import Taker
from ff_core.state.room import LostError, Room
from ff_core.state.shared import Met, apart, definitions
from ff_core.state.start import MOST_BYTES, Start
from ff_core.state.words import some_of


class Looked:
    """The part of `ff_core.state.variables.Variables` that changes nothing of the script."""

    def __init__(self) -> None:
        self._process = uuid.uuid4().hex
        self._asked: Start | None = None
        self._loaders: list[Any] = []
        self._comes_again = True
        self._begin_with(Start())

    def _begin_with(self, start: Start) -> None:
        self._covered, self._found, self._live, self._began = start.covered, start.found, start.live, start.began
        self._ids, self._writes_uncounted = start.ids, start.writes_uncounted
        self._alive = start.alive  # objects, in the last version too: an iteration that is void may have let go of one
        self._changed: set[str] = set()  # saved with every version from now on
        self._of_data: set[str] = set()  # go on with the data
        self._fetched: dict[str, Any] = {}  # their marks behind the last batch
        self._mixed: set[str] = set()  # of them: that the loop changes, too
        self._by_loading: ByLoading | None = None
        self._marks: dict[str, Any] = {}  # when the last version was complete
        self._new_ones: dict[str, tuple[Any, Any]] = {}  # path -> test and mark then, under names that are new
        self._kept: set[str] = set()  # new names whose values were written in place: no batches
        self._modules = late.Modules()
        self._fresh = True  # no code of the loop has run since the marks were made
        self._looks = 0

    def _taker(self, size: int, items: int = values.MOST_ITEMS, *, share: bool = True, met: Met | None = None) -> Taker:
        room = Room(size, items)
        return Taker(room, self._covered.has, self._found.label_of, share=share, met=met, ids=self._ids)

    def expected_bytes(self) -> int:
        """Room that they may need in a version."""
        known = self._live.known(self._live.look())
        sizes = [tensor.nbytes for _, value in known for tensor in values.tensors(value)]
        return min(2 * sum(sizes) + (2 << 20), 2 * MOST_BYTES)

    def written(self) -> list[str]:
        """Names of what training has changed, and what can be neither saved nor put back."""
        taker = self._taker(MOST_BYTES, 1 << 62)
        known = dict(self._live.known(self._live.look()))
        lost = []
        for path in sorted(self._changed & known.keys() - self._of_data):
            entry = entries.entry_of(taker, path, known[path], self._marks.get(path), False)
            value = known[path]  # it may answer any name, or fail to
            gives_batches = type(value) is GeneratorType and value.gi_running
            if entry[0] is None and entry[1] != "function" and not gives_batches:
                lost.append(f"{path} ({entry[1]})")
        return lost

    def told(self, remedies: Remedies) -> list[str]:
        """After the first iterations: what a user should know before a failure."""
        written, threads = self.written(), standard.threads_of_script()
        advice = variable_words.remedy(remedies)
        return [
            *([variable_words.WRITTEN.format(what=some_of(written)) + advice] if written else []),
            *([variable_words.THREADS.format(what=some_of(threads))] if threads else []),
        ]

    def changed_since(self, saved: dict[str, Any]) -> list[str]:
        """Names of numbers, texts and containers of these that are not what they were in `save()` of this process.

        What has tensors is no answer: it may be a batch.
        """
        then = {**saved["changed"], **saved["new"]}
        parts = definitions(then.values())
        taker, changed = self._taker(MOST_BYTES, 1 << 62), []
        for path, value in self._live.all().items():
            entry = then.get(path)
            before = self._began.start.get(path) if path not in then else None if entry is None else entry[0]
            if before is None or path in self._of_data or self._covered.has(value):
                continue
            try:
                now = taker.take(value, path)
            except LostError:
                continue
            if entries.is_plain(before) and entries.is_plain(now) and repr(apart(before, parts)) != repr(now):
                changed.append(path)
        return changed

    def counts(self) -> dict[str, int]:
        """Whole numbers that training has changed, by name."""
        return {path: value for path, value in self._live.all().items() if type(value) is int}
