"""Uninterrupted trainings, to which interrupted ones are compared: each is made once, and found again.

A training without failover depends on its command line, the files of this project that its script imports, and the
versions of libraries and processor. Their hash names a folder under .pytest_cache, which processes and later runs
share. So a developer who changes an agent or the engine does not wait for trainings in which neither takes part.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".pytest_cache" / "references"  # pytest's own cache folder: `make clean` removes it
LIBRARIES = ("torch", "deepspeed", "megatron-core", "numpy", "accelerate", "transformers")
NOT_ALWAYS = ("trl", "peft", "pytorch-lightning")  # the set-up leaves them out


def reference(script: Path, key: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` filled, now or earlier.

    script: the training script, whose sources count.  key: whatever else decides the result: arguments (without the
    places that results are written to), number of ranks, the text of a configuration file.  Whoever comes second while
    it is being made waits. Where `make` raises, nothing is kept.
    """
    name = hashlib.sha256(json.dumps([list(key), sources(script), versions()]).encode()).hexdigest()[:24]
    folder = FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with this process, however it ends
        if not folder.exists():
            unfinished = FOLDER / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@functools.cache
def sources(script: Path) -> list[tuple[str, str]]:
    """Name and hash of the script and of every file of this project that it imports, also inside functions."""
    finder = ModuleFinder([str(script.parent), str(ROOT)])  # libraries are not found there, and so left out
    finder.run_script(str(script))
    files = {Path(module.__file__).resolve() for module in finder.modules.values() if module.__file__}
    return [(str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(files)]


@functools.cache
def versions() -> list[str]:
    """Of Python, the libraries, and the processor, by which torch chooses its kernels."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = {line for line in lines if line.startswith(("model name", "flags"))}
    found = [*map(importlib.metadata.version, LIBRARIES)]
    for name in NOT_ALWAYS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return [sys.version, *sorted(processor), *found]
