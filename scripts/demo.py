#!/usr/bin/env python3
"""The demonstration: a training job loses two ranks, goes on, and ends with exactly the same bits.

    make demo              or    python scripts/demo.py
    make demo-megatron     or    python scripts/demo.py --framework megatron --size tiny --out out/demo-megatron

1. trains a small GPT with DeepSpeed (or Megatron) on four ranks under plain torchrun, uninterrupted;
2. trains it again under `fftrain run`, on two emulated nodes with a spare process each. One rank is killed in the
   middle of a backward pass, later rank 0 is killed from outside;
3. compares every loss and the hashes of parameters, optimizer state and RNG of every rank.

Leaves all logs, report.html and report.json in out/demo. Exit code 0 and `bit-exact: yes`, or 1 and `bit-exact: no`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.follow import JsonLines, Watch
from bench.jobs import (
    FRAMEWORKS,
    ROOT,
    Cluster,
    Job,
    Training,
    end_on_sigterm,
    fftrain_command,
    shown,
    torchrun_command,
)
from bench.results import differences
from bench.screen import Screen

from ff_core.errors import FailoverError
from ff_core.observe.report import print_report, write_report
from ff_core.observe.story import Story, load_story

CLUSTER = Cluster(ranks=4, nodes=2, spares=1)
VICTIM, FIRST = 2, 0  # the rank that is killed in mid-backward, and the one that is killed from outside
_POLL_S = 0.05
_TOGETHER_S = 900.0  # a job that takes longer is stuck: 30 times what it takes here


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    end_on_sigterm()
    out: Path = arguments.out.resolve()
    report: dict[str, Any] = {
        "bit_exact": False, "error": None, "differences": [], "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }  # fmt: skip
    with Screen() as screen:
        try:
            demonstrate(arguments, out, screen, report)
        except (FailoverError, OSError) as error:
            report["error"] = str(error)
        except KeyboardInterrupt:
            report["error"] = "interrupted"
        except Exception:  # a mistake of this script's: the record must not be lost for it
            report["error"] = traceback.format_exc()
    return conclude(screen, out, report)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, kill, recover, and prove that nothing changed.")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", metavar="DIR", help="emptied first")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each of the two jobs")
    parser.add_argument("--size", default="5m", help="of the model, as in scripts/train_gpt.py")
    parser.add_argument("--config", type=Path, default=Training(1).config, metavar="FILE", help="DeepSpeed's JSON file")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="deepspeed", help="what trains (default: deepspeed)")
    parser.add_argument("--no-import-hooks", action="store_true", help="for a patched framework: see `fftrain patch`")
    arguments = parser.parse_args(words)
    if arguments.steps < 12:
        parser.error(f"--steps {arguments.steps}: allowed: 12 or more, for two kills with iterations between them")
    if not arguments.config.is_file():
        parser.error(f"--config {arguments.config}: no such file")
    out: Path = arguments.out
    # It is emptied: nothing that was not written by a demonstration before may be in it.
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").exists())):
        parser.error(f"--out {out}: allowed: a directory that is new, empty, or that of an earlier demonstration")
    return arguments


def demonstrate(arguments: argparse.Namespace, out: Path, screen: Screen, report: dict[str, Any]) -> None:
    """Run both jobs and compare; fills `report`. Raises JobFailed."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write(out, report)
    training = Training(arguments.steps, arguments.size, arguments.config.resolve(), framework=arguments.framework)
    plain, protected = out / "uninterrupted", out / "with-kills"

    screen.say("1. The same script under torchrun, uninterrupted", "bold")
    with Job(plain, torchrun_command(plain, training, CLUSTER.ranks)) as job:
        screen.say(f"   {shown(job.command)}", "dim")
        follow(job, training, screen, "uninterrupted", None)
        report["uninterrupted"] = {"seconds": round(time.time() - job.started, 2), "log": str(job.log)}

    kill_at = arguments.steps // 2
    screen.say("2. Under fftrain, on two emulated nodes with a spare each; two ranks will be killed", "bold")
    options = ["--inject", f"kill rank={VICTIM} iteration={kill_at} at=backward"]
    if arguments.no_import_hooks:
        options.append("--no-import-hooks")
    with Job(protected, fftrain_command(protected, training, CLUSTER, options)) as job:
        screen.say(f"   {shown(job.command)}", "dim")
        killer = Killer(protected, screen, not_before=kill_at + 5, at_latest=max(kill_at + 5, arguments.steps - 10))
        follow(job, training, screen, "with kills", killer)
        report["killed"] = {"seconds": round(time.time() - job.started, 2), "log": str(job.log)}

    screen.say("3. Comparing losses, parameters, optimizer states and random numbers of every rank", "bold")
    lines = differences(protected, plain, CLUSTER.ranks)
    story = load_story(protected)
    dead = [rank for recovery in story.recoveries for rank in recovery.dead]
    if sorted(dead) != sorted((VICTIM, FIRST)):
        lines.append(f"ranks {VICTIM} and {FIRST} should have died and been replaced; those that were: {dead}")
    page, _ = write_report(story, protected, html=out / "report.html")
    report |= {"differences": lines, "bit_exact": not lines, "page": str(page), "job": story.to_dict()}
    print_story(story, screen)


class Killer:
    """Kills rank 0 from outside once the first failover is over, preferably when every node has a spare ready again.

    not_before, at_latest: the iterations between which it waits for the spares.
    """

    def __init__(self, directory: Path, screen: Screen, not_before: int, at_latest: int) -> None:
        self.watch = Watch(directory)
        self.screen, self.not_before, self.at_latest = screen, not_before, at_latest
        self.killed_at: float | None = None

    def poll(self, step: int) -> None:
        """step: the last that has been logged. (W may lag far behind it, at a long interval.)"""
        for event in self.watch.update():
            self._tell(event)
        watch = self.watch
        ready = all(watch.spares.get(node, 0) > 0 for node in range(CLUSTER.nodes)) or step >= self.at_latest
        if self.killed_at is None and watch.failovers and step >= self.not_before and ready:
            self.killed_at = time.time()
            os.kill(watch.pids[FIRST], signal.SIGKILL)
            self.screen.say(f"   rank {FIRST}, process {watch.pids[FIRST]}: SIGKILL sent from outside", "bold red")

    def _tell(self, event: dict[str, Any]) -> None:
        kind, say = event["kind"], self.screen.say
        if kind == "training_start":
            say(f"   {event['coverage']}")
        elif kind == "spare_ready":
            say(f"   node {event['node']}: a spare is ready")
        elif kind == "injection":
            say(f"   rank {event['rank']} kills itself in the middle of its backward pass", "bold red")
        elif kind == "failover":
            say(
                f"   recovered in {event['total_s']:.2f} s: rank {event['dead'][0]} is played by a "
                f"{'spare' if event['spare'] == 'warm' else 'new process'}, the other ranks stayed alive, "
                f"iteration {event['v_star'] + 1} was done again",
                "bold green",
            )


def follow(job: Job, training: Training, screen: Screen, name: str, killer: Killer | None) -> None:
    """Show the job's progress until it has ended well. Raises JobFailed."""
    screen.begin(name, training.steps)
    losses = JsonLines(job.directory / "losses.jsonl")
    deadline, step = time.monotonic() + _TOGETHER_S, 0
    while True:
        running = job.running  # asked before the files are read: what a job wrote last is seen
        job.check(deadline, "its training had ended")
        if killer is not None:
            killer.poll(step)
        for line in losses.read():
            step = int(line["step"])
            screen.advance(step, f"loss {line['loss']:.4f}")
        if not running:
            return
        time.sleep(_POLL_S)


def print_story(story: Story, screen: Screen) -> None:
    screen.say("")
    print_report(story, screen.console)


def conclude(screen: Screen, out: Path, report: dict[str, Any]) -> int:
    """Write out/report.json and the last words; returns the exit code."""
    if report["error"]:
        screen.say(f"the demonstration failed: {report['error']}", "bold red")
    for line in report["differences"][:20]:
        screen.say(f"  differs: {line}", "red")
    if "page" in report:
        screen.say(f"page:    {report['page']}")
    try:
        screen.say(f"numbers: {write(out, report)}")
    except OSError as error:
        screen.say(f"{out / 'report.json'} cannot be written: {error.strerror}", "bold red")
        report["bit_exact"] = False
    exact = bool(report["bit_exact"])
    screen.say(f"bit-exact: {'yes' if exact else 'no'}", "bold green" if exact else "bold red")
    return 0 if exact else 1


def write(out: Path, report: dict[str, Any]) -> Path:
    """report.json is written at the beginning too: whatever happens, there is a record, and it does not say yes."""
    path = out / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
