"""megatron.training for spares: it lies in a checkout, not among the libraries that a spare imports by itself.

A live rank publishes where its checkout is and what it has imported from there; `load` runs in a spare.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

log = logging.getLogger("ff_megatron")


def publish(session: AdapterSession) -> None:
    """Tell spares which modules of Megatron this process has from outside the libraries."""
    found = from_checkout()
    if found is not None:
        session.call_in_spares("ff_megatron.preload:load", *found)


def from_checkout() -> tuple[str, list[str]] | None:
    """(directory that holds `megatron/training`, names of the modules imported from it); None if there is none."""
    package = sys.modules.get("megatron.training")
    file = getattr(package, "__file__", None)
    if file is None:
        return None
    root = Path(file).resolve().parents[2]
    names = [
        name
        for name, module in list(sys.modules.items())
        if name.startswith("megatron.") and (getattr(module, "__file__", None) or "").startswith(f"{root}/")
    ]
    return str(root), names


def load(root: str, names: list[str]) -> None:
    """Import `names` from `root`. One that does not import is logged and left to the script.

    sys.path is as before afterwards: the script finds the checkout in its own way.
    """
    sys.path.insert(0, root)
    try:
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:
                log.warning("%s did not import in a spare: %s", name, error)
    finally:
        sys.path.remove(root)
