"""Learning rates and the like: what the optimizer is about to use, and whether that is what it has to be.

Nobody finds a scheduler that is a plain function: it writes `group["lr"]`, from a count that no version has. What it
writes can be looked at, right before each step. Two things are known about it:

* Ranks that had the same value before a failure have the same afterwards (`differing`). Ranks whose values differ on
  purpose are not compared.
* A step that is made again uses what the first attempt used (`Repeated`).

    | notes: as many entries as of the inputs, 2 little-endian 32-bit words: iteration + 1, checksum of the values |
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ff_core.contract.adapter import Remedies
from ff_core.errors import DifferenceError
from ff_core.state.inputs import ENTRIES
from ff_core.state.ranks import by_value

_ENTRY = struct.Struct("<2I")
BYTES = _ENTRY.size * ENTRIES
"""Of memory that outlives the process, for `Repeated`."""

_PLAIN = (bool, int, float, complex, str, type(None))
_SMALL = 16  # elements of a tensor that may be a hyperparameter

_REMEDY = (
    "A scheduler of the script's own most likely counts by itself: a replacement begins that count anew, and a "
    "repeated iteration counts twice. Compute what it sets from {remedies.counter}, or save its count: {remedies.save}"
)


def remedy(remedies: Remedies) -> str:
    """For who reads that hyperparameters differ."""
    return _REMEDY.format(remedies=remedies)


def values_of(groups: Iterable[Mapping[str, Any]], on_device: bool = False) -> dict[str, Any]:
    """ "lr of parameter group 0" -> plain value, of parameter groups without their parameters.

    on_device: values in tensors of a device too, for which it is waited.
    """
    found: dict[str, Any] = {}
    for number, group in enumerate(groups):
        for name, value in group.items():
            if name != "params":
                taken = _plain(value, on_device)
                if taken is not None:
                    found[_named(name, number)] = taken
    return found


def _named(name: str, number: int) -> str:
    return f"{name} of parameter group {number}"


def _plain(value: Any, on_device: bool) -> Any:
    if torch.is_tensor(value):
        if value.numel() > _SMALL or not (on_device or value.device.type == "cpu"):
            return None
        return value.detach().tolist()
    if isinstance(value, (list, tuple)):
        taken = [_plain(item, on_device) for item in value]
        return None if any(item is None for item in taken) else taken
    return value if isinstance(value, _PLAIN) else None


def checksum(values: Mapping[str, Any]) -> int:
    """Another one for other values."""
    return zlib.crc32(repr(list(values.items())).encode())


class _Entry(NamedTuple):
    """One value of a group. text: for the checksum; None: it is no hyperparameter."""

    value: Any
    name: str
    taken: Any
    text: str | None


class Noted:
    """values_of() and checksum() of groups that are asked again and again: only what was exchanged is made anew.

    A value that can be written in place (a tensor, a list) is taken anew each time, a plain one if it is another one.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], _Entry] = {}

    def of(self, groups: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
        """(values_of(groups), their checksum)."""
        found: dict[str, Any] = {}
        texts = []
        for number, group in enumerate(groups):
            for key, value in group.items():
                if key == "params":
                    continue
                entry = self._known.get((number, key))
                if entry is None or entry.value is not value:
                    entry = self._entry(key, number, value)
                if entry.text is not None:
                    found[entry.name] = entry.taken
                    texts.append(entry.text)
        return found, zlib.crc32(f"[{', '.join(texts)}]".encode())

    def _entry(self, key: str, number: int, value: Any) -> _Entry:
        name, taken = _named(key, number), _plain(value, on_device=False)
        entry = _Entry(value, name, taken, None if taken is None else repr((name, taken)))
        if _is_fixed(value):
            self._known[number, key] = entry
        else:
            self._known.pop((number, key), None)
        return entry


def _is_fixed(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_fixed, value)))


@dataclass(frozen=True)
class Shown:
    """What one rank says. before: its values in the version that the job went back to; now: before its next step."""

    before: dict[str, Any]
    now: dict[str, Any]


def differing(shown: Sequence[Shown], newcomers: set[int]) -> list[str]:
    """In words, what ranks would use differently now though they had it in common. shown: by rank."""
    names = {name for one in shown for name in one.before}
    found = []
    for name in sorted(names):
        having = {rank: one for rank, one in enumerate(shown) if name in one.before}
        if len({repr(one.before[name]) for one in having.values()}) > 1:
            continue
        now = {rank: repr(one.now.get(name)) for rank, one in having.items()}
        if len(set(now.values())) > 1:
            found.append(f"{name} is {by_value(now, newcomers)}")
    return found


def in_common(shown: Sequence[Shown]) -> frozenset[str]:
    """Names of what all ranks had, with the same value, in the version that the job went back to."""
    first = shown[0].before
    return frozenset(
        name
        for name, value in first.items()
        if all(name in one.before and repr(one.before[name]) == repr(value) for one in shown)
    )


class Repeated:
    """What each step of one rank used, for when it is made again. notes: writable memory of BYTES, zero at first."""

    def __init__(self, rank: int, notes: memoryview, remedies: Remedies) -> None:
        self._rank, self._notes, self._remedies = rank, notes, remedies
        self._used: dict[int, int] = {}  # iteration -> checksum
        self._expected: dict[int, int] = {}

    def take_over(self) -> None:
        """In a replacement: what the dead rank used is what this one must use."""
        for place in range(ENTRIES):
            number, used = _ENTRY.unpack_from(self._notes, place * _ENTRY.size)
            if number:
                self._expected[number - 1] = used

    def again(self, version: int) -> None:
        """The steps after `version` will be made again."""
        for iteration in [n for n in self._used if n > version]:
            self._expected.setdefault(iteration, self._used.pop(iteration))

    def uses(self, iteration: int, values: Mapping[str, Any], used: int) -> None:
        """Before the step of `iteration`. used: checksum of `values`.

        Raises DifferenceError if its first attempt used other values.
        """
        expected = self._expected.pop(iteration, used)
        if expected != used:
            some = ", ".join(f"{name} {value!r}" for name, value in list(values.items())[:4])
            raise DifferenceError(
                f"rank {self._rank} was to repeat step {iteration} after a failure, but would not use the "
                f"hyperparameters that it used before the failure. It has now: {some}, ... "
                f"{remedy(self._remedies)}"
            )
        self._used[iteration] = used
        self._used.pop(iteration - ENTRIES, None)
        offset = iteration % ENTRIES * _ENTRY.size
        struct.pack_into("<I", self._notes, offset, 0)  # an entry that is being written does not count
        struct.pack_into("<I", self._notes, offset + 4, used)
        struct.pack_into("<I", self._notes, offset, iteration + 1)
