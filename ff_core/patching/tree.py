"""A framework's files on disk and the patches for them: which one fits, and changing all of its files or none."""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ff_core.patching.patchfile import FilePatch, Patch, PatchError, digest, versions


class State(enum.Enum):
    """Of a tree that a patch fits. HALF: some files are patched, some are not; it can be applied and reverted."""

    APPLICABLE = "applicable"
    APPLIED = "applied"
    HALF = "half applied"


@dataclass(frozen=True, slots=True)
class Fit:
    """`patch` fits the tree at `root`, which is in `state`."""

    root: Path
    patch: Patch
    state: State


def root_of(path: Path, patches: Sequence[Patch]) -> Path:
    """The directory that the patches' paths start from: of a checkout, of site-packages, or around the package `path`.

    Raises PatchError naming what is missing.
    """
    if not path.is_dir():
        raise PatchError(f"{path}: {'not a directory' if path.exists() else 'no such directory'}")
    folders = sorted({Path(file.path).parent for patch in patches for file in patch.files})
    top = folders[0].parts[0]
    around = [path.resolve().parent] if path.resolve().name == top else []
    for root in (path, *around):
        if any((root / folder).is_dir() for folder in folders):
            return root
    raise PatchError(
        f"{path}: there is no {folders[0]} in it; allowed: a checkout, the directory {top} of an installed package, or "
        "the directory around that"
    )


def find(path: Path, patches: Sequence[Patch]) -> Fit:
    """The patch that fits the tree at `path`. Raises PatchError: which file is not the one of which version."""
    root = root_of(path, patches)
    nearest, reason = -1, ""
    for patch in patches:
        known = {file: _which(root / file.path, file) for file in patch.files}
        states = set(known.values())
        if None not in states:
            half = len(states) > 1
            return Fit(root, patch, State.HALF if half else State.APPLIED if "after" in states else State.APPLICABLE)
        file = next(file for file in known if known[file] is None)
        right = sum(state is not None for state in known.values())
        if right > nearest:
            others = f" (other files are those of {patch.version}, as they should be)" if right else ""
            nearest, reason = right, f"{root / file.path} {_reason(root / file.path, file)}{others}"
    raise PatchError(f"{reason}; versions that work: {versions(patches)}")


def _which(path: Path, file: FilePatch) -> str | None:
    """ "before" or "after"; None for anything else."""
    if path.is_symlink() or not path.is_file():
        return None
    return {file.before: "before", file.after: "after"}.get(digest(path.read_bytes()))


def _reason(path: Path, file: FilePatch) -> str:
    if path.is_symlink():
        return f"is a link to {path.resolve()}: name the tree in which the file itself is"
    if not path.is_file():
        return "does not exist"
    content = path.read_bytes()
    if digest(content.replace(b"\r\n", b"\n")) in (file.before, file.after):
        return "has lines that end with CRLF: convert them to LF"
    return f"has contents that no patch is made for (sha256 {digest(content)})"


def apply(fit: Fit) -> None:
    """Patch every file that is not. Raises PatchError, OSError; then the tree is as it was."""
    _change(fit, "before")


def revert(fit: Fit) -> None:
    """Give every file its original bytes again. Raises PatchError, OSError; then the tree is as it was."""
    _change(fit, "after")


def _change(fit: Fit, which: str) -> None:
    contents: dict[Path, bytes] = {}
    for file in fit.patch.files:
        path = fit.root / file.path
        if _which(path, file) == which:
            content = path.read_bytes()
            contents[path] = file.apply(content) if which == "before" else file.revert(content)
    replace_all(contents)


def replace_all(contents: dict[Path, bytes]) -> None:
    """Give existing files new contents: every file, or on an exception none. Modes and owners are kept.

    All that can fail for want of space or permission happens before the first file changes; files change by rename.
    """
    with contextlib.ExitStack() as temporary:
        staged = {file: _beside(file, content, temporary) for file, content in contents.items()}
        saved = {file: _beside(file, file.read_bytes(), temporary) for file in contents}
        done: list[Path] = []
        try:
            for file, new in staged.items():
                done.append(file)
                new.replace(file)
        except BaseException:
            for file in done:
                saved[file].replace(file)
            raise


def _beside(file: Path, content: bytes, temporary: contextlib.ExitStack) -> Path:
    """A file with `content` in the same directory, on disk; it goes with `temporary` if it is still there then."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    path = Path(name)
    temporary.callback(path.unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    owner = file.stat()
    with contextlib.suppress(PermissionError):  # somebody else's file in a directory of ours becomes ours
        os.chown(path, owner.st_uid, owner.st_gid)
    shutil.copymode(file, path)
    return path
