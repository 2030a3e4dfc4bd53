"""What training leaves, to be compared to the bit whoever wrote it, and whenever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

_OF_TIME = ("runtime", "per_second")


def digest(path: Path) -> str:
    """Of what `torch.save()` wrote there; objects of classes by their text."""
    return hashlib.sha256(repr(plain(torch.load(path, weights_only=False))).encode()).hexdigest()


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return [(key, plain(each)) for key, each in value.items()]
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else str(value)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log of Hugging Face's Trainer without what differs from run to run."""
    return [{key: value for key, value in entry.items() if not key.endswith(_OF_TIME)} for entry in history]


def trainer_state(path: Path, folder: Path) -> dict[str, Any]:
    """Its trainer_state.json in a checkpoint below `folder`, wherever that is."""
    state = json.loads(path.read_text().replace(str(folder), ""))
    return {**state, "log_history": timeless(state["log_history"])}
