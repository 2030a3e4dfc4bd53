"""Preparing a spare: a live rank publishes which library modules it has imported, a spare imports the same ones.

Importing is most of a new process's start (seconds; the takeover itself takes a fraction of one). Only libraries are
imported ahead, not a user's own modules; and of libraries only those whose import asks for nothing that only the rank
knows (see ff_core.worker.watch).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from ff_core.contract.env import RANK_VARIABLES
from ff_core.state.frames import OURS, users_modules
from ff_core.state.installed import is_library
from ff_core.worker.hooks import resolve
from ff_core.worker.script import script_directory
from ff_core.worker.watch import NotAhead, Watch, digest

#: Variables that scripts set in front of their imports, and that libraries read in them. No rank has a value of its
#: own, and none is a secret: so a spare is given what a live rank has. Of all others it hears a digest only.
_OF_JOB = (
    "CUDA_DEVICE_MAX_CONNECTIONS", "DS_ACCELERATOR", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    "TRANSFORMERS_OFFLINE", "USE_FLAX", "USE_TF", "USE_TORCH",
)  # fmt: skip
_NEVER = ("__main__", "__mp_main__", "ff_core.worker.worker_main")


@dataclass(slots=True)
class PreloadResult:
    """What a spare got ready.

    imported, called: how many modules and calls succeeded.  seconds: for all of it.
    skipped: module or call -> why it failed alone; it will be done, or fail properly, when the script needs it.
    unfit: module or call -> why it must wait for the rank. Not empty: the process cannot become a rank as it is.
    """

    imported: int = 0
    called: int = 0
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)


def library_modules() -> list[str]:
    """Names of the library modules this process has imported, in the order of their import.

    Libraries are what was installed (see ff_core.state.installed), and this package. The package that the script itself
    belongs to (`-m package.module`) is the user's, wherever it is installed.
    """
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
        if top in OURS or is_library(spec.origin, name):
            names.append(name)
    return names


_environ_at_start: dict[str, str] = {}


def remember_environment() -> None:
    """In a process that has got its rank: the environment is what the script will find."""
    _environ_at_start.clear()
    _environ_at_start.update(os.environ)


def changed_environment() -> dict[str, str]:
    """Variables that have another value than before the script (or none), name -> digest of the value."""
    now = dict(os.environ)
    names = {name for name in {*now, *_environ_at_start} if now.get(name) != _environ_at_start.get(name)}
    return {name: digest(now.get(name)) for name in sorted(names - {*RANK_VARIABLES})}


def settings_of_job() -> dict[str, str]:
    """Of the variables that the script has set since remember_environment(), those that a spare may have, by name."""
    return {n: os.environ[n] for n in _OF_JOB if n in os.environ and os.environ[n] != _environ_at_start.get(n)}


def search_paths() -> list[str]:
    """Where the imports of this process look, in order. A script may have added to them, and a library may find
    there what a spare would take for missing. Without folders inside an installed package: setuptools adds its own,
    in a spare, too."""
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]  # noqa: PTH100 (as imports do)
    return [path for path in paths if not _is_packages_own(Path(path), paths)]


def _is_packages_own(path: Path, paths: Sequence[str]) -> bool:
    """Whether `path` is a folder of a package that pip has installed in one of `paths`."""
    for outer in path.parents:
        if str(outer) in paths:
            package = path.relative_to(outer).parts[0]
            if is_library(str(outer / package / "__init__.py"), package):
                return True
    return False


@contextmanager
def _set(settings: Mapping[str, str]) -> Iterator[None]:
    """Within: the environment has them. Afterwards it is as before: the script will set them itself."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run(
    modules: Sequence[str],
    calls: Sequence[Sequence[Any]],
    wanted: Callable[[], bool] = lambda: False,
    *,
    argv: Sequence[str] = (),
    without: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    paths: Sequence[str] = (),
) -> PreloadResult:
    """In a spare: import `modules`, then make `calls`, each ["module:function", [arguments]].

    argv: the script with its arguments, as the rank had them.  without: modules and calls that must wait for the rank.
    changed, settings, paths: what a live rank's changed_environment(), settings_of_job() and search_paths() were.

    Ends early once `wanted()`: the spare has become a rank, whose script imports what it needs in any case.
    What fails alone is skipped and told (some modules import only as part of others). Variables that name a rank are
    removed from the environment first; an import that asks for one makes the process unfit.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    result = PreloadResult()
    start = time.monotonic()
    if argv:
        sys.argv = list(argv[1:] if argv[0] == "-m" else argv)
    watch = Watch(without, script_directory(argv) if argv else None, changed or {}, paths)

    def attempt(name: str, work: Callable[[], object]) -> int:
        watch.begin(name)
        try:
            work()
            return 1
        except (Exception, SystemExit) as error:
            result.skipped[name] = f"{type(error).__name__}: {error}"
        except NotAhead as error:
            result.skipped[name] = f"{error} must wait for the rank"
        finally:
            watch.end()
        return 0

    with _set(settings or {}), watch.watching():
        for module in modules:
            if wanted():
                break
            if not watch.waits(module):
                result.imported += attempt(module, lambda: importlib.import_module(module))  # noqa: B023 (called at once)
        for function, arguments in calls:
            if wanted() or watch.found:
                break
            if not watch.waits(function):
                result.called += attempt(function, lambda: resolve(function)(*arguments))  # noqa: B023
    if not wanted():
        users_modules()  # remembered: a newcomer asks several times
    result.unfit = watch.found
    result.seconds = time.monotonic() - start
    return result


def _users_package() -> str | None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return None
    top = str(spec.name).partition(".")[0]
    return None if top in OURS or top == "__main__" else top
