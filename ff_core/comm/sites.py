"""Call sites: where in the user's or framework's code a collective was issued."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

_OBJECT_COLLECTIVES = frozenset(
    {
        "all_gather_object",
        "gather_object",
        "broadcast_object_list",
        "scatter_object_list",
        "send_object_list",
        "recv_object_list",
    }
)
_PLUMBING = tuple(str(Path(name).resolve().parent) + os.sep for name in (__file__, torch.__file__))
_DEPTH = 3  # frames named in a site: a framework's helper alone says little


def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_PLUMBING) or filename.startswith("<")


def call_site() -> tuple[str, bool]:
    """("file.py:12 in f < ...", whether an object collective of torch.distributed is on the stack)."""
    frame = sys._getframe(1)
    names: list[str] = []
    is_object = False
    current = frame
    while current is not None and len(names) < _DEPTH:
        code = current.f_code
        if not _is_plumbing(code.co_filename):
            tail = "/".join(code.co_filename.split("/")[-2:])
            names.append(f"{tail}:{current.f_lineno} in {code.co_name}")
        elif not names and code.co_name in _OBJECT_COLLECTIVES and code.co_filename.endswith("distributed_c10d.py"):
            is_object = True
        current = current.f_back  # type: ignore[assignment]
    return " < ".join(names) or "(no Python caller)", is_object
