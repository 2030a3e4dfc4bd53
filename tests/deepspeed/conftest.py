from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Results = list[list[dict[str, Any]]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def run_cases(tmp_path: Path) -> Callable[..., Results]:
    """run_cases(cases, world=2): one job of `world` processes runs all cases; results[case][rank]."""

    def run(cases: list[dict[str, Any]], world: int = 2) -> Results:
        path = tmp_path / "cases.json"
        path.write_text(json.dumps(cases), encoding="utf-8")
        port = _free_port()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
        workers = [
            subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(path), str(rank), str(world), str(port)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            )
            for rank in range(world)
        ]  # fmt: skip
        try:
            outputs = [worker.communicate(timeout=240)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        by_rank = []
        for rank, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
            results = [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]
            if worker.returncode or len(results) != len(cases):
                pytest.fail(f"rank {rank} ended with {worker.returncode} after {len(results)} cases:\n{output[-6000:]}")
            by_rank.append(results)
        return [[results[case] for results in by_rank] for case in range(len(cases))]

    return run
