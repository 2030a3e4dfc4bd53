"""Measures the copy engine on a GPU: `python scripts/bench_gpu.py --json gpu.json`, normally through gpu_check.sh.

Prints every number, then which targets are met; exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from bench.gpu_copy import measure_all
from bench.gpu_restore import measure_restore
from bench.gpu_rig import MIB

import ff_core

AT_LEAST = {"gpu.d2h_over_memcpy": 0.95, "gpu.fragments_over_flat": 0.8, "gpu.restore_over_tcp": 0.8}
AT_MOST = {"gpu.step_slowdown": 0.01, "gpu.blocked_ms": 1.0, "gpu.item_ms": 2.0}
EXACT = ("gpu.d2h_bit_exact", "gpu.restore_bit_exact")


def machine() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "torch": torch.__version__,
        "engine": ff_core.build_info(),
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The targets that `found` does not meet, in words."""
    lines = [f"{key} is {found[key]}, wanted at least {low}" for key, low in AT_LEAST.items() if found[key] < low]
    lines += [f"{key} is {found[key]}, wanted at most {high}" for key, high in AT_MOST.items() if found[key] > high]
    lines += [f"{key}: the bytes differ" for key in EXACT if not found[key]]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="measure the copy engine on a GPU")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--mib", type=int, default=1024, help="MiB of state (default 1024; some parts use twice that)")
    parser.add_argument("--rounds", type=int, default=9, help="of each measurement (default 9)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: there is nothing to measure")
    found: dict[str, Any] = {"machine": machine()}
    for part in (
        lambda: measure_all(options.mib, options.rounds),
        lambda: measure_restore(options.mib * MIB, options.rounds),
    ):
        found.update(part())
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    for key, value in found.items():
        print(f"{key:32} {value}")
    failures = missed(found)
    print("\n".join(failures) or "every target is met")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
