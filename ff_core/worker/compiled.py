"""Compiled libraries that may ask for the rank when they are loaded.

C and C++ code reads the environment by getenv(), which nobody can watch from here. But whoever asks for RANK has that
word in its file. While a spare imports ahead, every shared object that comes into the process is therefore looked
through for the names of a rank's variables. One that has such a name may ask later only, or never: then it waits for
the rank for nothing, which costs a failover the time of its import.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ff_core.contract.env import RANK_VARIABLES

#: Packages whose libraries are known to ask only when they are called. They are large.
_KNOWN = ("torch", "nvidia", "triton", "deepspeed")
#: Operators that DeepSpeed has compiled on this machine, of which the same is known.
_OPERATORS = ("deepspeed_shm_comm", "deepspeed_ccl_comm")

_OF_NAMES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")

#: found(module or None for one that no import system knows, file, variable)
Found = Callable[[str | None, str, str], None]


@contextmanager
def watched(found: Found) -> Iterator[None]:
    """Within: found() is called for each shared object that is loaded and has the name of a rank's variable in it."""
    import_extension, open_library = ExtensionFileLoader.create_module, ctypes._dlopen  # type: ignore[attr-defined]
    seen = loaded()

    def look(module: str | None) -> None:
        for path in sorted(loaded() - seen):
            seen.add(path)
            variable = named_in(path)
            if variable is not None:
                found(module, path, variable)

    def create_module(self: ExtensionFileLoader, spec: ModuleSpec) -> Any:
        made = import_extension(self, spec)
        look(spec.name)
        return made

    def dlopen(*arguments: Any) -> Any:
        handle = open_library(*arguments)
        look(None)
        return handle

    ExtensionFileLoader.create_module = create_module  # type: ignore[method-assign]
    ctypes._dlopen = dlopen  # type: ignore[attr-defined]
    try:
        yield
    finally:
        ExtensionFileLoader.create_module = import_extension  # type: ignore[method-assign]
        ctypes._dlopen = open_library  # type: ignore[attr-defined]


def loaded() -> set[str]:
    """Files that this process has mapped as code."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        fields = (line.rstrip("\n").split(maxsplit=5) for line in lines)
        return {field[5] for field in fields if len(field) == 6 and "x" in field[1] and field[5].startswith("/")}


def named_in(path: str) -> str | None:
    """The first of a rank's variables that `path` has as a string; None if it has none, or is a known one."""
    if Path(path).stem in _OPERATORS or path.startswith(_folders()):
        return None
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"getenv") < 0:
                return None
            return next((name for name in RANK_VARIABLES if _has(content, os.fsencode(name))), None)
    except (OSError, ValueError):  # a file that is gone, or empty
        return None


@functools.cache
def _folders() -> tuple[str, ...]:
    """Where the known packages lie. (A path that only has such a word in it may be the user's.)"""
    specs = map(PathFinder.find_spec, _KNOWN)  # which is no import of them, also while imports are watched
    return tuple(f"{folder}/" for spec in specs if spec for folder in spec.submodule_search_locations or ())


def _has(content: mmap.mmap, name: bytes) -> bool:
    """Whether `name` is a string of its own, or the end of a longer one such as PMI_RANK: linkers keep one for both."""
    at = content.find(name + b"\0")
    while at >= 0:
        start = at
        while start > 0 and content[start - 1] in _OF_NAMES:
            start -= 1
        if start > 0 and content[start - 1] == 0 and (start == at or content[at - 1 : at] == b"_"):
            return True
        at = content.find(name + b"\0", at + 1)
    return False
