"""What a script's variables were when training began, and whether they are that still.

began = Began(label_of)
began.take(pairs, taker)                # path and value, of all variables
mark = began.mark(path, value, look=True)
began.is_other(path, value, mark, look=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from ff_core.state import entries, objects, values
from ff_core.state.captured import Taker
from ff_core.state.marks import HEAVY, Marker
from ff_core.state.room import LostError, Taken


class Began:
    """label_of: of an object that is looked at by itself, else None.

    By path: marks.  fixed: the value, of what never changes in place.  objects: a reference to the object, of what
    does.  start: the value, if it can be saved.  contents: fingerprints of tensors.
    """

    def __init__(self, label_of: Callable[[Any], str | None]) -> None:
        self._label_of = label_of
        self.marks: dict[str, Any] = {}
        self.fixed: dict[str, Any] = {}
        self.objects: dict[str, Any] = {}
        self.start: dict[str, Taken] = {}
        self.contents: dict[str, str] = {}
        self._heavy: dict[str, Any] = {}  # path -> last mark, of what takes long to look at

    def take(self, held: Iterable[tuple[str, Any]], taker: Taker) -> None:
        """Training begins with these."""
        for path, value in held:
            self.marks[path] = self.mark(path, value, look=True)
            fixed = values.is_fixed(value)
            if fixed or type(value) is FunctionType:  # what a function has are variables themselves
                self.fixed[path] = value
            try:
                self.start[path] = taker.take(value, path)
            except LostError:
                pass
            if not fixed:
                self.objects[path] = entries.reference(value)
                self.contents[path] = entries.contents_of(value)

    def mark(self, path: str, value: Any, *, look: bool) -> Any:
        """look: at what has many parts, too; else its last mark will do."""
        if not look and path in self._heavy:
            return self._heavy[path]
        marker = Marker(self._label_of)
        mark = marker.mark(value)
        if marker.parts > HEAVY:
            self._heavy[path] = mark
        return mark

    def is_looked_at_itself(self, value: Any) -> bool:
        """Whether the mark of `value` only says which object it is."""
        return objects.is_users_object(value) and self._label_of(value) is not None

    def is_other(self, path: str, value: Any, mark: Any, look: bool) -> bool:
        """look: at the contents of tensors, too."""
        if mark != self.marks[path]:
            return True
        return look and path in self.contents and self.contents[path] != entries.contents_of(value)

    def is_same_object(self, path: str, value: Any) -> bool:
        return path in self.objects and entries.refers_to(self.objects[path](), value)

    def forget(self, label: str) -> None:
        """A place that has gone."""
        for kept in (self.marks, self.fixed, self.objects, self.start, self.contents, self._heavy):
            for path in [path for path in kept if path.startswith(label)]:
                del kept[path]
