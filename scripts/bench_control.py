#!/usr/bin/env python3
"""What a large job asks of its controller: one real controller, many simulated agents with real connections.

    python scripts/bench_control.py --agents 1000 --json out/control.json

The controller runs in a process of its own. Agents come, their ranks begin to train, versions are committed at 5 Hz,
and ranks die. Measured: the time until all have joined and train; the controller's share of a core at 5 Hz; the time
from the last commit of a version until each agent has heard W; from a death until each agent has heard of the new epoch
(halt), and until all have resumed. Agents answer at once, so nothing is measured of what agents and workers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from bench.control_agents import SimulatedAgent

from ff_core.config.schema import FailoverConfig
from ff_core.contract.job import JobSpec
from ff_core.controller.server import ControllerServer
from ff_core.errors import FailoverError
from ff_core.worker.rank_stats import percentile

_SECRET = b"a secret of sixteen"
_HZ, _WAIT_S = 5.0, 300.0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000, help="nodes")
    parser.add_argument("--ranks", type=int, default=1, help="of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which versions are committed at 5 Hz")
    parser.add_argument("--deaths", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(words)
    if arguments.agents < 2 or arguments.ranks < 1 or arguments.deaths < 1 or arguments.seconds <= 0:
        parser.error("--agents: 2 or more; --ranks, --deaths: 1 or more; --seconds: more than 0")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = {"agents": arguments.agents, "ranks": arguments.ranks, "cores": os.cpu_count()}
    results |= asyncio.run(measure(arguments))
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)
    return 0


def serve(job: JobSpec, pipe: Any) -> None:
    """In the controller's process: until the other side says so."""
    server = ControllerServer(job, _SECRET, "127.0.0.1")
    pipe.send(server.start())
    pipe.recv()
    os._exit(0)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    config = FailoverConfig(enabled=True, interval=1).to_dict()
    job = JobSpec(["train.py"], arguments.agents, arguments.ranks, "127.0.0.1", 1, config=config)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(job, theirs), daemon=True)
    process.start()
    host, port = ours.recv()
    agents = [SimulatedAgent(node, f"{host}:{port}", _SECRET, config) for node in range(arguments.agents)]
    try:
        begun = time.monotonic()
        await asyncio.gather(*(agent.join() for agent in agents))
        joined = time.monotonic()
        await until(lambda: all(agent.training for agent in agents), "all ranks train")
        found: dict[str, Any] = {"join_s": round(joined - begun, 3), "train_s": round(time.monotonic() - joined, 3)}
        found |= await commits(agents, psutil.Process(process.pid), arguments.seconds)
        found |= await deaths(agents, arguments.deaths)
        found["controller_rss_mb"] = round(psutil.Process(process.pid).memory_info().rss / 1e6)
        return found
    finally:
        ours.send("end")
        await asyncio.gather(*(agent.close() for agent in agents), return_exceptions=True)
        process.join(10)


async def commits(agents: list[SimulatedAgent], controller: psutil.Process, seconds: float) -> dict[str, Any]:
    """Versions at 5 Hz: the controller's share of a core, and how long W takes."""
    first = agents[0].w + 1
    late: list[float] = []
    used = sum(controller.cpu_times()[:2])
    begun = time.monotonic()
    count = max(1, int(seconds * _HZ))
    for number in range(count):
        due = begun + (number + 1) / _HZ
        for agent in agents:
            agent.commit(first + number)
        said = time.monotonic()
        await until(lambda wanted=first + number: all(agent.w >= wanted for agent in agents), "W")  # type: ignore[misc]
        late += [agent.heard["w"] - said for agent in agents]
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    took = time.monotonic() - begun
    share = (sum(controller.cpu_times()[:2]) - used) / took
    return {"hz": round(count / took, 2), "controller_cores": round(share, 3), "w_ms": spread(late)}


async def deaths(agents: list[SimulatedAgent], count: int) -> dict[str, Any]:
    """One rank after the other dies."""
    halts: list[float] = []
    resumes: list[float] = []
    for number in range(count):
        victim = agents[number % len(agents)]
        rank = min(victim.ranks)
        for agent in agents:
            agent.commit(agent.version + 1)
        await until(lambda: len({agent.w for agent in agents}) == 1 and agents[0].w == agents[0].version, "W")
        begun, epoch = time.monotonic(), victim.epoch
        victim.dies(rank)
        await until(lambda: all(agent.heard.get("halt", 0.0) >= begun for agent in agents), "a halt")  # noqa: B023
        halts += [agent.heard["halt"] - begun for agent in agents]
        victim.ends(rank)
        await until(lambda: all(a.epoch > epoch and a.heard.get("regroup", 0) >= begun for a in agents), "a regroup")  # noqa: B023
        resumes.append(time.monotonic() - begun)
    return {"halt_ms": spread(halts), "resume_ms": spread(resumes)}


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise FailoverError(f"not within {_WAIT_S:g} s: {what}")
        await asyncio.sleep(0.001)


def spread(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    return {
        "mean": round(statistics.fmean(ordered), 1), "median": round(statistics.median(ordered), 1),
        "p99": round(percentile(ordered, 0.99), 1), "most": round(ordered[-1], 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
