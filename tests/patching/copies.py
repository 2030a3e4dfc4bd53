"""Copies of the installed frameworks that tests may patch, and what a tree holds."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path


def copy_deepspeed(place: Path) -> Path:
    """Copy the installed DeepSpeed, compiled modules too, to PLACE/site-packages/deepspeed; returns site-packages.

    A directory of that name is what spares take for one of libraries.
    """
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    site = place / "site-packages"
    shutil.copytree(Path(spec.origin).parent, site / "deepspeed", symlinks=True)
    return site


def hashes(root: Path) -> dict[str, str]:
    """{path below root: sha256} of every file but those that Python caches."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
