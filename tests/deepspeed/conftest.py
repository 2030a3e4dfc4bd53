from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cpuinfo
import pytest

from tests.e2e.jobs import ENV

HERE = Path(__file__).parent
Results = list[list[dict[str, Any]]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", autouse=True)
def processor() -> Iterator[None]:
    """DeepSpeed's optimizers ask what processor this is whenever one is made, and py-cpuinfo asks three processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpuinfo, "get_cpu_info", functools.cache(cpuinfo.get_cpu_info))
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    """The process that forks ranks, see worker.py."""
    env = {**ENV, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), ENV["PYTHONPATH"]])}
    command = [sys.executable, str(HERE / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "[]\n":
            assert line, "worker.py ended before it was ready"
        yield process
        process.kill()  # it would not see its input end while a test's own processes, forked meanwhile, still have it


@pytest.fixture
def run_cases(tmp_path: Path, server: subprocess.Popen[str]) -> Callable[..., Results]:
    """run_cases(cases, world=2): one job of `world` processes runs all cases; results[case][rank]."""

    def run(cases: list[dict[str, Any]], world: int = 2) -> Results:
        path = tmp_path / "cases.json"
        path.write_text(json.dumps(cases), encoding="utf-8")
        outputs = [tmp_path / f"output{rank}" for rank in range(world)]
        job = {"cases": str(path), "world": world, "port": _free_port(), "outputs": [str(path) for path in outputs]}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        by_rank = []
        for rank, (code, path) in enumerate(zip(codes, outputs, strict=True)):
            output = path.read_text()
            results = [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]
            if code or len(results) != len(cases):
                pytest.fail(f"rank {rank} ended with {code} after {len(results)} cases:\n{output[-6000:]}")
            by_rank.append(results)
        return [[results[case] for results in by_rank] for case in range(len(cases))]

    return run
