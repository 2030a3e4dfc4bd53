"""Preparing a spare: a live rank publishes which library modules it has imported, a spare imports the same ones.

Importing is most of a new process's start (seconds; the takeover itself takes a fraction of one). Only libraries are
imported ahead: a user's own modules may read RANK when they are imported, and a spare has no rank.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from ff_core.contract.env import RANK_VARIABLES
from ff_core.worker.hooks import resolve

_OURS = ("ff_core", "ff_deepspeed", "ff_megatron")
_NEVER = ("__main__", "__mp_main__", "ff_core.worker.worker_main")


@dataclass(slots=True)
class PreloadResult:
    """What a spare got ready.

    imported, called: how many modules and calls succeeded.  seconds: for all of it.
    skipped: module or call -> why it failed alone; it will be done, or fail properly, when the script needs it.
    """

    imported: int = 0
    called: int = 0
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)


def library_modules() -> list[str]:
    """Names of the library modules this process has imported, in the order of their import.

    Libraries are what lies in site-packages, dist-packages or the standard library, and this package. The package that
    the script itself belongs to (`-m package.module`) is the user's, wherever it is installed.
    """
    roots = _library_roots()
    own = _users_package()
    names = []
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if name in _NEVER or (own is not None and top == own):
            continue
        spec = getattr(module, "__spec__", None)
        # A module under a second name, or one made by hand, cannot be imported by its name.
        if not isinstance(spec, ModuleSpec) or spec.name != name or not spec.has_location or not spec.origin:
            continue
        if top in _OURS or _is_below(spec.origin, roots):
            names.append(name)
    return names


def run(
    modules: Sequence[str], calls: Sequence[Sequence[Any]], wanted: Callable[[], bool] = lambda: False
) -> PreloadResult:
    """In a spare: import `modules`, then make `calls`, each ["module:function", [arguments]].

    Ends early once `wanted()`: the spare has become a rank, whose script imports what it needs in any case.
    What fails alone is skipped and told (some modules import only as part of others). Variables that name a rank are
    removed from the environment first, so that none can be read by an import.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    result = PreloadResult()
    start = time.monotonic()
    for module in modules:
        if wanted():
            break
        try:
            importlib.import_module(module)
            result.imported += 1
        except (Exception, SystemExit) as error:
            result.skipped[module] = f"{type(error).__name__}: {error}"
    for function, arguments in calls:
        if wanted():
            break
        try:
            resolve(function)(*arguments)
            result.called += 1
        except (Exception, SystemExit) as error:
            result.skipped[function] = f"{type(error).__name__}: {error}"
    result.seconds = time.monotonic() - start
    return result


def _library_roots() -> list[str]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += site.getsitepackages()
    paths += [site.getusersitepackages()]
    paths += [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return sorted({os.path.realpath(p) for p in paths if p})


def _is_below(origin: str, roots: Sequence[str]) -> bool:
    path = os.path.realpath(origin)
    return any(path.startswith(root + os.sep) for root in roots)


def _users_package() -> str | None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return None
    top = str(spec.name).partition(".")[0]
    return None if top in _OURS or top == "__main__" else top
