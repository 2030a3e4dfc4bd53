#!/usr/bin/env python3
"""Faults at random moments of a real job, which has to end as if there had been none.

    python scripts/chaos.py --minutes 3 --seed 1 [--every 10] [--kinds kill,stop,node] [--json FILE]

Two nodes with two ranks each train a small GPT with DeepSpeed (ZeRO 1) on three hosts, one of which stands by. Hosts
are network namespaces; where these are not permitted they are addresses of the loopback, and no cable is pulled. The
same training runs under torchrun first, uninterrupted. At the end every loss, parameter, optimizer state and random
state of every rank is compared, and nothing may be left over: no process, no shared memory, no namespace.

A seed gives the same faults at the same times. What they hit depends on where the job is then; no rank is hit twice
between two versions. Exit code 0: all bits are right and nothing is left. OUT/chaos.json has the numbers; goodput is
the share of the time that an uninterrupted training would have needed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for tests.hosts

import psutil
from bench.faults import KINDS, Cluster, Fault, plan
from bench.follow import JsonLines, Watch
from bench.jobs import ROOT, Job, JobFailed, Training, end_on_sigterm, torchrun_command
from bench.results import differences

from ff_core.worker.rank_stats import percentile
from tests.hosts import Hosts

RANKS, PER_NODE = 4, 2
_SAID_S, _POLL_S, _END_S = 120.0, 0.05, 240.0
_BEFORE_S = 30.0  # until the standby's spares are ready, the job trains without faults
_QUIET_STEPS = 10  # at the end: a replacement has to be ready before the job is through


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    end_on_sigterm()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"seed": arguments.seed, "bit_exact": False, "left_over": [], "error": None}
    try:
        run(arguments, out, report)
    except (JobFailed, OSError) as error:
        report["error"] = str(error)
    (out / "chaos.json").write_text(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    for name, value in report.items():
        print(f"{name}: {value}")
    return 0 if report["bit_exact"] and not report["left_over"] and report["error"] is None else 1


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="in which faults happen")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="seconds between two faults, on average")
    parser.add_argument("--kinds", default=",".join(KINDS), help="; ".join(f"{k}: {v[1]}" for k, v in KINDS.items()))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "chaos", metavar="DIR", help="each run adds to it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers go there, too")
    arguments = parser.parse_args(words)
    arguments.kinds = arguments.kinds.split(",")
    unknown = [kind for kind in arguments.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"--kinds {','.join(unknown)}: allowed: {', '.join(KINDS)}")
    if arguments.minutes <= 0 or arguments.every <= 0:
        parser.error("--minutes and --every: allowed: more than 0")
    return arguments


def run(arguments: argparse.Namespace, out: Path, report: dict[str, Any]) -> None:
    """Both trainings and the comparison; fills `report`. Raises JobFailed."""
    stamp = time.strftime("%H%M%S")
    seconds = arguments.minutes * 60
    step_s, _ = uninterrupted(out / f"{stamp}-pace", 20)
    steps = int((seconds + _BEFORE_S) / step_s) + _QUIET_STEPS
    print(f"a step takes {step_s:.3f} s: {steps} steps without faults first", flush=True)
    step_s, reference = uninterrupted(out / f"{stamp}-uninterrupted", steps)
    faults = plan(arguments.seed, seconds, arguments.every, arguments.kinds)
    before = shared_memory()
    directory = out / f"{stamp}-faults"
    with Hosts(3) as hosts:
        report["hosts"] = "network namespaces" if hosts.real else "addresses of the loopback"
        goodput, cluster = train(hosts, directory, steps, step_s, faults)
        report["left_over"] += [f"process {pid} on host {host}" for host in range(3) for pid in hosts.pids(host)]
    report["left_over"] += [f"/dev/shm/{name}" for name in sorted(shared_memory() - before)]
    report["left_over"] += [f"process {pid}" for pid in of_job(directory)]
    wrong = differences(directory, reference, RANKS)
    totals = [event["total_s"] for event in cluster.watch.failovers]
    report |= {
        "bit_exact": not wrong, "differences": wrong[:20], "steps": steps,
        "faults": dict(Counter(what.split()[0] for _, what in cluster.done)),
        "what": [f"{fault.at_s:.1f} s: {what}" for fault, what in cluster.done],
        "failovers": len(totals), "failover_s": summary(totals),
        "goodput": round(goodput, 3),
    }  # fmt: skip


def summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"mean": round(statistics.fmean(values), 2), "median": round(statistics.median(values), 2),
            "p99": round(percentile(ordered, 0.99), 2), "longest": round(ordered[-1], 2)}  # fmt: skip


def training(steps: int) -> Training:
    return Training(steps, "tiny")


def uninterrupted(directory: Path, steps: int) -> tuple[float, Path]:
    """(seconds of a step, where the results are) of the training under torchrun."""
    with Job(directory, torchrun_command(directory, training(steps), RANKS)) as job:
        while job.running:
            job.check(time.monotonic() + 1, "its end")
            time.sleep(_POLL_S)
        job.check(time.monotonic() + 1, "its end")
    times = [line["t"] for line in JsonLines(directory / "losses.jsonl").read()]
    return (times[-1] - times[5]) / (len(times) - 6), directory


def train(
    hosts: Hosts, directory: Path, steps: int, step_s: float, faults: list[Fault]
) -> tuple[float, Cluster]:  # fmt: skip
    """(goodput while there are faults, the cluster) of the training. step_s: of a step without. Raises JobFailed."""
    directory.mkdir(parents=True)
    config = directory / "ff.json"
    config.write_text(json.dumps({"enabled": True, "secret": os.urandom(16).hex(), "spares": 1}))

    def command(host: int, standby: bool, endpoint: str) -> list[str]:
        own = [] if hosts.real else ["--local-addr", hosts.addresses[host]]
        return [
            sys.executable, "-m", "ff_core.launch.cli", "run", "--nnodes", "2", "--nproc-per-node", str(PER_NODE),
            "--ff-config", str(config), "--rdzv-endpoint", endpoint, "--out-dir", str(directory), *own,
            *(["--standby"] if standby else []), *training(steps).command(directory),
        ]  # fmt: skip

    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    cluster = Cluster(hosts, directory, command, environment, Watch(directory))
    for host in range(3):
        cluster.start(host, standby=host == 2)
        if host == 0:
            wait(cluster, lambda: "still to come" in (directory / "host0-1.log").read_text(), "host 0 waits for others")
    wait(cluster, lambda: cluster.watch.w >= 1 and cluster.all_there(), "training, and the standby's spares")
    began, first = time.monotonic(), cluster.watch.w
    for fault in faults:
        while time.monotonic() - began < fault.at_s:
            cluster.look()
            time.sleep(_POLL_S)
        if cluster.watch.ended is not None or cluster.watch.w > steps - _QUIET_STEPS:
            break
        cluster.do(fault)
        print(f"{fault.at_s:.1f} s: {cluster.done[-1][1]}", flush=True)
    wait(cluster, lambda: cluster.watch.ended is not None, "the end of the training", _END_S + 2 * steps)
    goodput = (steps - first) * step_s / (time.monotonic() - began)
    deadline = time.monotonic() + _SAID_S
    for host, launcher in cluster.launchers.items():
        code = launcher.wait(max(1.0, deadline - time.monotonic()))
        if code != 0:
            raise JobFailed(f"the launcher on host {host} ended with {code}: see {directory}")
    return goodput, cluster


def wait(cluster: Cluster, condition: Any, what: str, seconds: float = _SAID_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        cluster.look()
        if time.monotonic() > deadline:
            raise JobFailed(f"not within {seconds:g} s: {what}; see {cluster.directory}")
        time.sleep(_POLL_S)


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def of_job(directory: Path) -> list[int]:
    """Processes that still work for the job."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(directory) in word for word in words):
            found.append(process.pid)
    return found


if __name__ == "__main__":
    sys.exit(main())
