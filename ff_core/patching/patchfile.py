"""A patch of a framework: lines to insert into its files, and the SHA-256 of each file before and after.

The file is a unified diff that inserts only and has no context lines, so that it holds nothing of the framework's own
text; `patch -p1` and `git apply --unidiff-zero` take it too. The lines above the first "---", which they skip, pin it:

    framework: deepspeed
    version: 0.19.8
    before 3f5c...e0 after 91ab...7c deepspeed/__init__.py

    --- a/deepspeed/__init__.py
    +++ b/deepspeed/__init__.py
    @@ -726,0 +727,3 @@
    +...
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ff_core.errors import FailoverError


class PatchError(FailoverError):
    """A patch cannot be used: here, or at all. The message names file and reason, and what would work."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """lines (each with its newline) come after the first `after` lines of the original file."""

    after: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """One file. path: below the tree's root, with slashes.  before, after: SHA-256 of its contents, in hex.

    insertions: in the order of their places.
    """

    path: str
    before: str
    after: str
    insertions: tuple[Insertion, ...]

    def apply(self, content: bytes) -> bytes:
        """The patched contents. Raises PatchError if `content` is not the file before, or the result not after."""
        self._check(content, self.before)
        lines = _lines(content)
        for insertion in reversed(self.insertions):
            lines[insertion.after : insertion.after] = insertion.lines
        return self._check(b"".join(lines), self.after)

    def revert(self, content: bytes) -> bytes:
        """The original contents again. Raises PatchError if `content` is not the file after."""
        self._check(content, self.after)
        lines = _lines(content)
        for insertion in self.insertions:  # earlier ones are gone already: places are those of the original
            del lines[insertion.after : insertion.after + len(insertion.lines)]
        return self._check(b"".join(lines), self.before)

    def _check(self, content: bytes, wanted: str) -> bytes:
        if digest(content) != wanted:
            raise PatchError(f"{self.path}: sha256 {digest(content)}; allowed: {wanted}")
        return content


@dataclass(frozen=True, slots=True)
class Patch:
    """framework: "deepspeed" or "megatron".  version: of the framework, as it names it.  files: at least one."""

    framework: str
    version: str
    files: tuple[FilePatch, ...]

    @property
    def lines(self) -> int:
        """Number of lines that it inserts."""
        return sum(len(insertion.lines) for file in self.files for insertion in file.insertions)


def digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def difference(path: str, before: bytes, after: bytes) -> FilePatch:
    """The patch that makes `after` out of `before`. Raises PatchError if more than whole lines is inserted."""
    old = _lines(before)
    inserted: list[list[bytes]] = [[] for _ in range(len(old) + 1)]
    place = 0
    for line in _lines(after):
        if place < len(old) and line == old[place]:
            place += 1
        else:
            inserted[place].append(line)
    if place < len(old):
        raise PatchError(f"{path}: line {place + 1} is changed or gone; allowed: inserted lines")
    insertions = [Insertion(place, tuple(lines)) for place, lines in enumerate(inserted) if lines]
    if not insertions:
        raise PatchError(f"{path}: nothing is inserted")
    if any(not line.endswith(b"\n") for insertion in insertions for line in insertion.lines):
        raise PatchError(f"{path}: an inserted line does not end; allowed: a newline at the end of the file")
    return FilePatch(path, digest(before), digest(after), tuple(insertions))


def write(patch: Patch, note: str = "") -> bytes:
    """The patch file's contents. note: lines for readers, put on top."""
    head = [*note.splitlines(), f"framework: {patch.framework}", f"version: {patch.version}"]
    head += [f"before {file.before} after {file.after} {file.path}" for file in patch.files]
    parts = ["\n".join(head).encode() + b"\n\n"]
    for file in patch.files:
        parts.append(f"--- a/{file.path}\n+++ b/{file.path}\n".encode())
        inserted = 0
        for insertion in file.insertions:
            count = len(insertion.lines)
            place = f"@@ -{insertion.after},0 +{insertion.after + inserted + 1},{count} @@\n"
            parts += [place.encode(), *(b"+" + line for line in insertion.lines)]
            inserted += count
    return b"".join(parts)


_PINNED = re.compile(r"before ([0-9a-f]{64}) after ([0-9a-f]{64}) (\S+)")
_HUNK = re.compile(rb"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


def read(content: bytes, source: str) -> Patch:
    """The patch in a patch file's contents. source: its name, for messages. Raises PatchError naming the line."""
    head, diff = content, b""
    start = re.search(rb"^--- ", content, re.MULTILINE)
    if start is not None:
        head, diff = content[: start.start()], content[start.start() :]
    named = {}
    pinned: dict[str, tuple[str, str]] = {}
    for line in head.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(": ")
        found = _PINNED.fullmatch(line)
        if found:
            pinned[_safe(found[3], source)] = (found[1], found[2])
        elif colon and name in ("framework", "version"):
            named[name] = value.strip()
    insertions = dict(_files(diff, source))
    if set(named) != {"framework", "version"} or not pinned or insertions.keys() != pinned.keys():
        raise PatchError(
            f"{source}: it pins {sorted(pinned)} and changes {sorted(insertions)}; allowed: the same files, at least "
            'one, and the lines "framework: " and "version: "'
        )
    files = tuple(FilePatch(path, *pinned[path], insertions[path]) for path in pinned)
    return Patch(named["framework"], named["version"], files)


def load(file: Path) -> Patch:
    """The patch in `file`. Raises PatchError."""
    try:
        return read(file.read_bytes(), str(file))
    except OSError as error:
        raise PatchError(f"{file}: {error.strerror}") from error


def _files(diff: bytes, source: str) -> Iterator[tuple[str, tuple[Insertion, ...]]]:
    """(path, insertions) of each file of a diff."""
    lines = _lines(diff)
    position = 0

    def wrong(allowed: str) -> PatchError:
        found = lines[position].decode("utf-8", "replace").rstrip() if position < len(lines) else "its end"
        return PatchError(f"{source}: {found!r}: allowed: {allowed}")

    while position < len(lines):
        old = lines[position].rstrip(b"\n")
        if not old.startswith(b"--- a/"):
            raise wrong("--- a/PATH")
        path = _safe(old[6:].decode("utf-8", "replace"), source)
        position += 1
        if position == len(lines) or lines[position] != f"+++ b/{path}\n".encode():
            raise wrong(f"+++ b/{path}")
        position += 1
        insertions: list[Insertion] = []
        while position < len(lines) and (hunk := _HUNK.match(lines[position])):
            count, after = int(hunk[3] or 1), int(hunk[1])
            inserted = lines[position + 1 : position + 1 + count]
            if len(inserted) < count or any(line[:1] != b"+" for line in inserted):
                raise wrong(f"{count} lines with a + after it")
            if insertions and after <= insertions[-1].after:
                raise wrong("places in their order")
            insertions.append(Insertion(after, tuple(line[1:] for line in inserted)))
            position += 1 + count
        if not insertions:
            raise wrong("@@ -LINE,0 +LINE,COUNT @@")
        yield path, tuple(insertions)


def _safe(path: str, source: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path == ".":
        raise PatchError(f"{source}: file {path!r}: allowed: a plain path below the framework's tree")
    return path


def _lines(content: bytes) -> list[bytes]:
    """Split at newlines, and nowhere else; each line keeps its own."""
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def versions(patches: Sequence[Patch]) -> str:
    """The versions in a message."""
    return ", ".join(patch.version for patch in patches)
