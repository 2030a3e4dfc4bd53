"""Configurations of the kind that LLaMA-Factory and axolotl ship, written anew: each starts protected, but for NVMe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.test_shipped import CONFIGS, NVME, path_of


def test_each_starts_protected(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """Hugging Face's Trainer fills in what is "auto", and makes two steps."""
    cases = [
        {"shipped": path_of(name), "precision": precision, "steps": 2, "folder": str(tmp_path), "may_fail": True}
        for name, precision in CONFIGS.items()
    ]
    for name, (result,) in zip(CONFIGS, run_cases(cases, world=1), strict=True):
        if name in NVME:
            assert re.search(r"nvme\" is not supported: state on a disk is not copied; \"cpu\" is", result["error"]), (
                name
            )
        else:
            found = {key: result[key] for key in ("error", "steps", "sealed", "finished")}
            assert found == {"error": "", "steps": 2, "sealed": 2, "finished": 1}, name
