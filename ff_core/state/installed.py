"""Which files are a library's: not what a user works on, but what was installed.

    is_library(module.__file__, module.__name__)

Libraries lie below the standard library, in site-packages or dist-packages, or wherever else pip has put them (`pip
install --target DIR`, with DIR in PYTHONPATH): there each has a dist-info directory beside it. A project that was
installed in place (`pip install -e`) lies elsewhere, and is the user's.
"""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

_BELOW = tuple({f"{path}/" for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))})
_NAMED = frozenset({"site-packages", "dist-packages"})


@functools.cache
def is_library(file: str, module: str | None) -> bool:
    """file: of a module or a code object.  module: its name, if it has one."""
    path = Path(file)
    return _is_librarys(path, module) or _is_librarys(path.resolve(), module)


def _is_librarys(path: Path, module: str | None) -> bool:
    return _is_below(path) or _is_beside(path, module)


def _is_below(path: Path) -> bool:
    return str(path).startswith(_BELOW) or not _NAMED.isdisjoint(path.parts)


def _is_beside(path: Path, module: str | None) -> bool:
    """Whether pip has put the module's outermost package where it is."""
    parts = [*path.parts[:-1], path.name.partition(".")[0]]
    top = (module or parts[-1]).partition(".")[0]
    if top not in parts:
        return False
    place = len(parts) - 1 - parts[::-1].index(top)
    return top in _installed_in(Path(*parts[:place]))


@functools.cache
def _installed_in(directory: Path) -> frozenset[str]:
    """Names of the outermost packages and modules that pip has put into a directory."""
    return frozenset(_names(directory))


def _names(directory: Path) -> Iterator[str]:
    for distribution in distributions(path=[str(directory)]):
        # A project that is installed in place may have an egg-info beside it; only what pip copies has a record.
        for line in (distribution.read_text("RECORD") or "").splitlines():
            yield line.partition(",")[0].partition("/")[0].partition(".")[0]
