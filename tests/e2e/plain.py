"""What a checkpoint's file has, to be compared to the bit whoever wrote it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch


def digest(path: Path) -> str:
    """Of what `torch.save()` wrote there; objects of classes by their text."""
    return hashlib.sha256(repr(plain(torch.load(path, weights_only=False))).encode()).hexdigest()


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return [(key, plain(each)) for key, each in value.items()]
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else str(value)
