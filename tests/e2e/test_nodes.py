"""Jobs on several hosts (network namespaces): one command on each, hosts that are lost, standbys."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import ENV, committed, read_events, toy, wait_for
from tests.e2e.on_hosts import (
    ITERATIONS,
    assert_same,
    command,
    host_of,
    hurry,
    log,
    ready,
    start,
    three,
    uninterrupted,
    wait_until_said,
)  # fmt: skip
from tests.hosts import Hosts

__all__ = ["three", "uninterrupted"]  # fixtures
ROOT = Path(__file__).resolve().parents[2]


def test_a_host_is_lost_and_the_standby_takes_its_ranks(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]
) -> None:
    """All processes of host 1 are killed, its launcher too. Losses are those of plain torchrun, to the bit."""
    order = (1, 2, 0) if three.real else (0, 1, 2)  # who comes before the controller waits for it
    started = {}
    for number in order:
        options = ["--nnodes", "2", *(["--standby"] if number == 2 else [])]
        started[number] = three.start(number, command(tmp_path, three, number, *options), log(tmp_path, number), ENV)
        if number != order[-1] and (three.real or number == 0):
            wait_until_said(tmp_path, number, "yet; asking again" if three.real else "nodes are still to come")
    wait_for(tmp_path, ready(2), 90)
    wait_for(tmp_path, committed(4))
    three.power_off(1)
    hurry(tmp_path)
    said = {number: log(tmp_path, number) for number in order}
    assert started[0].wait(200) == 0, said[0].read_text()[-4000:]
    assert started[2].wait(30) == 0, said[2].read_text()[-4000:]
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert failover["newcomers"] == [2, 3] and failover["spare"] == "warm"
    moved = [event["node"] for event in events if event["kind"] == "worker_start" and event["rank"] in (2, 3)]
    assert moved == [1, 1, 2, 2]
    assert "stands by" in said[0].read_text()


@pytest.mark.slow
def test_a_host_that_was_lost_comes_again_and_stands_by(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]
) -> None:
    """The same command everywhere, as in pods: the third host stands by because the job needs two. A host that lost
    power is started again and becomes a standby, under a new number; then it takes the ranks of the one that took its
    own."""
    first = start(tmp_path, three, pause=2.5)[0]
    wait_for(tmp_path, ready(2), 90)
    lost, standby = host_of(tmp_path, three, 1), host_of(tmp_path, three, 2)
    three.power_off(lost)
    words = command(tmp_path, three, lost, "--nnodes", "2", pause=2.5)
    again = three.start(lost, words, tmp_path / "again.txt", ENV)
    wait_for(tmp_path, ready(3), 90)
    three.power_off(standby)
    assert first.wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert again.wait(30) == 0
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    assert [event["newcomers"] for event in events if event["kind"] == "failover"] == [[2, 3], [2, 3]]
    moved = [event["node"] for event in events if event["kind"] == "worker_start" and event["rank"] == 2]
    assert moved == [1, 2, 3]


@pytest.mark.slow
def test_a_host_that_was_cut_off_is_fenced_and_stands_by_when_it_hears_again(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]
) -> None:
    """Its cable is pulled: the standby takes its ranks. Plugged in again it hears that it is lost, ends its workers,
    and its launcher, which nobody touches, comes again as a standby. It then takes the ranks of the next lost host."""
    if not three.real:
        pytest.skip("the stand-in's hosts have no cables")
    started = start(tmp_path, three, pause=2.5)
    wait_for(tmp_path, ready(2), 90)
    lost, standby = host_of(tmp_path, three, 1), host_of(tmp_path, three, 2)
    three.unplug(lost)
    wait_for(tmp_path, lambda events: any(event["kind"] == "failover" for event in events), 60)
    three.plug_in(lost)
    wait_for(tmp_path, ready(3), 90)
    three.power_off(standby)
    assert started[0].wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert started[lost].wait(30) == 0, log(tmp_path, lost).read_text()[-4000:]
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    assert [event["newcomers"] for event in events if event["kind"] == "failover"] == [[2, 3], [2, 3]]
    assert "no heartbeat" in next(event["reason"] for event in events if event["kind"] == "node_lost")
    assert "to stand by" in log(tmp_path, lost).read_text()


@pytest.mark.slow
def test_a_host_is_lost_and_another_one_comes_because_the_job_asks_for_it(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]
) -> None:
    """There is no standby: the job says what it waits for, and how to help. Who does so takes the ranks."""
    started = start(tmp_path, three, (0, 1))
    wait_for(tmp_path, committed(4))
    three.power_off(1)
    wait_until_said(tmp_path, 0, "start the same command on one, with --standby")
    time.sleep(2.0)  # longer than anybody needs to go on without
    assert started[0].poll() is None
    words = command(tmp_path, three, 2, "--nnodes", "2", "--standby")
    helper = three.start(2, words, log(tmp_path, 2), ENV)
    assert started[0].wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert helper.wait(30) == 0, log(tmp_path, 2).read_text()[-4000:]
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    (waiting,) = [event for event in events if event["kind"] == "waiting"]
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert waiting["ranks"] == failover["newcomers"] == [2, 3] and waiting["version"] == failover["v_star"]
    moved = [event["node"] for event in events if event["kind"] == "worker_start" and event["rank"] in (2, 3)]
    assert moved == [1, 1, 2, 2]


@pytest.mark.slow
def test_a_host_is_lost_and_nobody_comes(tmp_path: Path, three: Hosts) -> None:
    """The job ends when its time to wait is over, with a code of its own."""
    started = start(tmp_path, three, (0, 1), place_timeout_s=3.0)
    wait_for(tmp_path, committed(4))
    three.power_off(1)
    assert started[0].wait(60) == 69
    said = log(tmp_path, 0).read_text()
    assert "the job FAILED (exit code 69)" in said and "none came within 3 s (place_timeout_s)" in said
    waiting, end = (next(e for e in read_events(tmp_path) if e["kind"] == kind) for kind in ("waiting", "job_end"))
    assert end["code"] == 69 and end["t"] - waiting["t"] >= 3.0


SRUN = """#!{python}
# Stands in for Slurm's: starts the command on every host at once, and ends with the highest exit code.
import json, os, subprocess, sys
words = sys.argv[1:]
assert {{"--no-kill", "--kill-on-bad-exit=0", "--wait=0"}} <= set(words)
while words[0].startswith("--"):
    words.pop(0)
tasks = []
for number, prefix in enumerate(json.loads(os.environ["HOSTS"])):
    env = {{**os.environ, "SLURM_NODEID": str(number), "SLURM_PROCID": str(number)}}
    with open(f"{place}/host{{number}}.txt", "w") as log:
        tasks.append(subprocess.Popen([*prefix, *words], env=env, stdout=log, stderr=log))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


@pytest.mark.slow
def test_the_sbatch_file(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """configs/slurm/train.sbatch as it is, with an srun that starts its command in the namespaces; a host is lost."""
    if not three.real:
        pytest.skip("the stand-in's hosts need an option each")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in (
        ("srun", SRUN.format(python=sys.executable, place=tmp_path)),
        ("scontrol", "#!/bin/sh\n[ \"$*\" = 'show hostnames list' ] && printf '%s\\n' " + " ".join(three.addresses)),
        ("fftrain", f'#!/bin/sh\nexec {sys.executable} -m ff_core.launch.cli "$@"\n'),
    ):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    env = {
        **ENV, "PATH": f"{bin_}:{ENV['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "list", "STANDBYS": "1",
        "SLURM_JOB_NUM_NODES": "3", "RANKS_PER_NODE": "2", "OUT": str(tmp_path),
        "HOSTS": json.dumps([three.words(number) for number in range(3)]),
    }  # fmt: skip
    script = str(ROOT / "configs" / "slurm" / "train.sbatch")
    with (tmp_path / "batch.txt").open("w") as batch:
        job = subprocess.Popen(
            ["bash", script, *toy(tmp_path, ITERATIONS, "--pause", "0.9")], env=env, stdout=batch, stderr=batch
        )
    wait_for(tmp_path, ready(2), 90)
    three.power_off(host_of(tmp_path, three, 1))
    assert job.wait(200) == 137, (tmp_path / "batch.txt").read_text()  # of the host that was lost
    assert "exit code" not in log(tmp_path, 0).read_text()
    assert_same(tmp_path, uninterrupted)
    config = tmp_path / "ff.json"
    assert config.stat().st_mode & 0o077 == 0 and len(json.loads(config.read_text())["secret"]) == 32
