"""What a script has in variables of its own: a count that decides, a best loss, an average in plain tensors.

    of_process.begin()               training begins: what is there now, a replacement's script makes, too
    saved = of_process.save()        an iteration is complete: the variables that training has changed so far
    of_process.load(saved, ...)      after a failure, at the same place of the script

A replacement gets them where its script has come to the place at which the version was complete. A survivor that
repeats its script gets them there, too: the iteration that is void has changed them. What cannot be put back and is
not as it was is given by name, for an error.

Looked at: the places of `ff_core.state.spaces`. Left alone: what is saved anyway (`ff_core.state.covered`), and what
changes while a batch is fetched, since that goes on by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ff_core.contract.adapter import Remedies
from ff_core.errors import UnsupportedError
from ff_core.state import covered, entries, placed, spaces, values, variable_words
from ff_core.state.by_loading import ByLoading
from ff_core.state.captured import Taker
from ff_core.state.covered import Covered
from ff_core.state.live import Seen
from ff_core.state.looked import Looked
from ff_core.state.marks import Marker
from ff_core.state.objects import GONE
from ff_core.state.restored import Putter
from ff_core.state.room import LostError
from ff_core.state.shared import Met, definitions
from ff_core.state.space import Space, running
from ff_core.state.start import MOST_BYTES, Start

log = logging.getLogger("ff_core")

_CLOSELY, _EVERY = 16, 16  # versions in which contents of tensors are looked at: what is written through .data


class Variables(Looked):
    """Of one process."""

    def asked(self, adapter: Any) -> None:
        """Before begin(): the script asks for what may be its first batch. A replacement takes over at this place.

        adapter: of the trainer (see ff_core.contract.adapter); None if that was another place.
        """
        if adapter is not None:
            covered.trains(adapter, ())
        self._asked = None if adapter is None else Start.here()

    def begin(
        self, of_functions: Collection[str] | None = None, *, after_asked: bool = False, refuses: Remedies | None = None
    ) -> None:
        """What is there now was made on the way to the loop, as a replacement makes it, too.

        of_functions: save()["functions"] of the rank whose place this process takes. It may begin where a batch is
        asked for, so what asks runs here as well: a generator that fetches ahead, which goes on by itself.

        after_asked: what was there in asked() was made on the way, what is here was not.
        refuses: of the framework. UnsupportedError is raised if there are too many; None: that is a warning.
        """
        start = self._asked.train() if after_asked and self._asked is not None else Start.here(of_functions)
        self._asked = None
        self._begin_with(start)
        if self._found.left_out:
            text = variable_words.left_out(self._found.left_out, start.most)
            if refuses is not None:
                raise UnsupportedError(text + variable_words.ALLOW.format(remedies=refuses))
            log.warning("%s", text)
        # Iterators ("placed"): a replacement has not begun those that give their first item later.
        of = self._live.spaces
        self._changed = {
            p for p, e in self._began.start.items() if e[0] == "placed" or of[entries.split(p)[0]].always
        }

    # ---- a version --------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """{"process", "functions": labels of those that ran when training began, "modules": names of those that were
        imported since, "changed": path -> entry, "new": path -> entry or None, of names that were not there at first}.

        entry: [taken or None, shown, text, mark, whether the object is that of the begin]. Tensors are the live ones:
        to be encoded at once.
        """
        self._looks, self._fresh = self._looks + 1, True
        look = self._looks <= _CLOSELY or self._looks % _EVERY == 0
        closely = look or self._writes_uncounted  # at what tensors have
        met = Met()
        taker = self._taker(MOST_BYTES, met=met)
        self._add(self._modules.new())
        changed: dict[str, Any] = {}
        done: set[int] = set()
        self._marks = {}
        awake = self._live.awake(self._began, self._changed)
        for path, value in list(self._live.moving(awake, self._began, self._changed, look=closely)):
            mark = self._marks[path] = self._began.mark(path, value, look=look)
            if path not in self._changed and not self._began.is_other(path, value, mark, closely):
                continue
            self._changed.add(path)
            same = self._began.is_same_object(path, value)
            if same and id(value) in done:
                changed[path] = None  # another name of the same
                continue
            if path in self._of_data:
                # The loop changes it, too: nobody could put that back.
                if mark != self._fetched.get(path) or path in self._mixed:
                    changed[path] = [None, values.of_kind(value), None, entries.crc(mark), same]
                    continue
                if self._comes_again:
                    continue
            entry = changed[path] = entries.entry_of(taker, path, value, mark, same)
            if entry[0] is None or entry[0][0] != "known":  # else it is saved under its own name
                done.add(id(value))
        self._alive = list(self._found.by_label().values())
        new = self._save_new(taker, awake, met)
        met.find_views()
        came = {"functions": self._found.functions, "modules": self._modules.names()}
        return {"process": self._process, **came, "changed": changed, "new": new}

    def _add(self, spaces: list[Space]) -> None:
        """Places that have come while the script trains: all of them counts."""
        for space in spaces:
            self._live.add(space)
            held = dict(self._live.known([(space, space.values({}))]))
            self._began.marks.update(dict.fromkeys(held))
            self._began.objects.update((p, entries.reference(v)) for p, v in held.items() if not values.is_fixed(v))
            self._changed.update(held)

    def _import(self, names: Collection[str], mine: bool) -> None:
        """The modules that the version had, and no others."""
        self._add(self._modules.needed(names))
        for label in self._modules.undone(names) if mine else ():
            self._live.remove(label)
            self._began.forget(label)

    def _save_new(self, taker: Taker, awake: Seen, met: Met) -> dict[str, Any]:
        small, saved, before = self._taker(entries.NEW_BYTES, met=met), dict[str, Any](), self._new_ones
        self._new_ones = {}
        for path, value in self._live.new(awake):
            if (path in self._of_data and self._comes_again) or not values.is_of_interest(value):
                saved[path] = None
                continue
            mark = None if values.is_fixed(value) else Marker(self._found.label_of).mark(value)
            self._new_ones[path] = entries.stays(value), mark
            is_again, last = before.get(path, (None, None))
            if is_again is not None and mark != last and is_again(value):
                self._kept.add(path)
            saved[path] = (
                entries.entry_of(taker, path, value, mark, False)
                if path in self._kept or entries.is_lasting(path)
                else entries.small_entry(small, path, value)
            )
        return saved

    def fetched(self) -> None:
        """A batch was fetched: what has changed since save() goes on with the data, if nothing else has run since."""
        if not self._fresh:
            return  # an item without a step: the script's own counts have changed, too
        self._fresh = False
        awake = self._live.awake(self._began, self._changed)
        for path, value in self._live.moving(awake, self._began, self._changed, look=False):
            mark = self._began.mark(path, value, look=False)
            if path in self._of_data or mark != self._marks.get(path, self._began.marks[path]):
                self._of_data.add(path)
                self._fetched[path] = mark

    def loads(self, loader: Any, *, again: bool) -> None:
        """Items come from `loader`, in the middle of an iteration: see `loading`.

        again: a replacement loads what lies before. Else it gets what loading had changed by then.
        """
        self._loaders.append(loader)
        if not again:
            spaces.look_through(loader)
        self._comes_again, self._by_loading = again, None

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around each item of `loads`: what changes within goes on with the data."""
        if not self._loaders or not self._live.spaces:
            yield
            return
        if self._by_loading is None:
            mark = partial(self._began.mark, look=False)
            self._by_loading = ByLoading(self._live.spaces.values(), self._loaders, mark)
        before = self._by_loading.marks()
        self._mixed |= {path for path, mark in before.items() if path in self._fetched and mark != self._fetched[path]}
        yield
        changed = self._by_loading.changed(before)
        self._of_data.update(changed)
        self._fetched.update(changed)

    # ---- after a failure --------------------------------------------------------------------------------------------

    def load(self, saved: dict[str, Any], *, repeats: bool) -> tuple[list[str], list[str]]:
        """Put `save()` back. repeats: the script begins an iteration anew, and found its place by itself.

        Gives, in words, what is not what it was, and lists whose entries are missing.
        """
        self._covered = Covered()
        mine = saved["process"] == self._process
        self._import(saved["modules"], mine)
        by_label = self._found.by_label()
        written = [*saved["changed"].items(), *saved["new"].items()]
        written.sort(key=lambda pair: entries.is_made_late(pair[1]))
        self._putter = Putter(lambda label: by_label.get(label, GONE), definitions(e for _, e in written), self._ids)
        now = self._live.all()
        self._used = set(entries.labels(saved["changed"])) | set(entries.labels(saved["new"]))
        writes: dict[str, Any] = {}
        lost: list[str] = []
        long: list[str] = []
        for path, entry in written:
            if entry is None or (path in self._of_data and entry[0] is not None):
                continue
            if path in now and self._covered.has(now[path]):
                continue
            try:
                writes[path] = self._restored(path, entry, now, mine)
                self._changed.add(path)
            except LostError as error:
                gives_batches = getattr(now.get(path), "gi_running", False) or not placed.drives_training()
                if (path in saved["new"] and entry[0] is not None) or (
                    entry[1] == "generator" and not repeats and gives_batches
                ):
                    continue
                (long if entry[1].endswith("entries") and entry[0] is None else lost).append(
                    f"{path} ({entry[1]}: {error})"
                )
        if mine:
            lost += self._go_back(saved, now, writes)
        self._write(writes)
        self._marks = {
            path: self._began.mark(path, value, look=True) for path, value in self._live.known(self._live.look())
        }
        self._fresh = True
        return lost, long

    def _restored(self, path: str, entry: list[Any], now: dict[str, Any], mine: bool) -> Any:
        """The value that `path` has to have. Raises LostError."""
        taken, _, text, mark, same = entry
        if entries.split(path)[0] not in self._live.spaces:
            raise LostError("it is not there")
        live = now.get(path)
        if taken is not None:
            return self._putter.put(live, taken, in_place=same or (not mine and self._is_alone(path, live)))
        live_mark = self._began.mark(path, live, look=True)
        if mine and entries.crc(live_mark) == mark:
            return live
        if text is None or values.text(live, live_mark) != text:
            raise LostError("it cannot be saved")
        return live

    def _is_alone(self, path: str, live: Any) -> bool:
        """Whether `live` is an object that only this variable has, and nothing of what is put back."""
        label = f"{path}."
        return self._found.label_of(live) == label and id(live) not in self._found.twice and label not in self._used

    def _go_back(self, saved: dict[str, Any], now: dict[str, Any], writes: dict[str, Any]) -> list[str]:
        """In a survivor, what only the void iteration has changed. Gives what cannot be put back."""
        lost = []
        for path, before in self._began.marks.items():
            if path in saved["changed"] or path in self._of_data or path not in now or self._covered.has(now[path]):
                continue
            value, contents = now[path], self._began.contents.get(path)
            same_mark = self._began.mark(path, value, look=True) == before
            if same_mark and (contents is None or contents == entries.contents_of(value)):
                continue
            if path in self._began.start:
                first = self._began.objects[path]() if path in self._began.objects else value
                live = value if first is None or type(first) is int else first
                writes[path] = self._putter.put(live, self._began.start[path], in_place=entries.refers_to(first, live))
            else:
                lost.append(f"{path} ({values.shown(value)})")
        with running() as functions:
            for space, held in self._live.look(functions):
                for name in list(held.keys() - space.all_known):
                    if space.label + name not in saved["new"]:
                        space.remove(functions, name)
        return lost

    def _write(self, writes: dict[str, Any]) -> None:
        by_space: dict[str, dict[str, Any]] = {}
        for path, value in writes.items():
            label, name = entries.split(path)
            by_space.setdefault(label, {})[name] = value
        with running() as functions:
            for space, live in self._live.look(functions):
                named = by_space.get(space.label, {})
                changed = {name: value for name, value in named.items() if name not in live or live[name] is not value}
                if changed:
                    space.write(functions, changed)

of_process = Variables()
"""Those of the script that runs in this process."""
