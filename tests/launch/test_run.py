"""Whole jobs without a training framework: real launcher, controller, agents and workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from ff_core.launch import torch_store
from tests.e2e.jobs import TOY, start

DEADLINE_S = 200.0
TORCH_ALONE = TOY  # a script that imports what these scripts import, and workers by themselves


class Job:
    """One `fftrain run` of a script that consists of `code`. forked: False where the interpreter's own start counts."""

    def __init__(self, place: Path, code: str, *options: str, forked: bool = True) -> None:
        prelude = "import os, sys, time\nRANK = int(os.environ['RANK'])\n"
        (place / "train.py").write_text(prelude + textwrap.dedent(code))
        argv = [sys.executable, "-u", "-m", "ff_core.launch.cli", "run", *options, "train.py", "--v", "3"]
        self.out, self.err = place / "out.txt", place / "err.txt"
        files = {"stdout": self.out.open("w"), "stderr": self.err.open("w")}
        self.process = start(argv, str(TORCH_ALONE), forked=forked, cwd=place, **files)

    def wait(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr); nothing of the job may be left."""
        family = [self.process.pid, *self.family()]
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        deadline = time.monotonic() + 5  # what they were forked from ends after them
        while time.monotonic() < deadline and any(map(is_running, family)):
            time.sleep(0.02)
        assert [pid for pid in family if is_running(pid)] == []
        return code, self.out.read_text(), self.err.read_text()

    def family(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def until_printed(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.out.read_text().count(text) < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_success_on_two_emulated_nodes(tmp_path: Path) -> None:
    job = Job(tmp_path, "print('args', sys.argv[1:], os.environ['LOCAL_RANK'], os.environ['LOCAL_WORLD_SIZE'])",
              "--nproc-per-node", "2", "--emulate-nodes", "2", "--out-dir", "o")  # fmt: skip
    code, out, err = job.wait()
    assert code == 0, err
    assert sorted(out.splitlines()) == [f"[{rank}]: args ['--v', '3'] {rank} 2" for rank in range(2)]
    assert (tmp_path / "o" / "logs" / "0" / "rank1" / "stdout.log").read_text() == "args ['--v', '3'] 1 2\n"


def test_all_workers_have_one_hash_seed_also_after_a_restart(tmp_path: Path) -> None:
    """The order of a set of strings is the same in every process of the job, and in the next job."""
    code = """
        print(hash("ff"), flush=True)
        if RANK == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0": sys.exit(3)
        """
    status, out, err = Job(tmp_path, code, "--nproc-per-node", "2", "--max-restarts", "1", forked=False).wait()
    assert status == 0, err
    known = subprocess.run(
        [sys.executable, "-c", "print(hash('ff'))"], env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True,
        text=True, check=True,
    ).stdout.strip()  # fmt: skip
    values = [line.partition(": ")[2] for line in out.splitlines()]
    assert set(values) == {known} and len(values) >= 3


def test_failure_ends_with_the_first_failed_ranks_traceback(tmp_path: Path) -> None:
    code, _, err = Job(
        tmp_path, "if RANK == 1: raise ValueError('boom')\ntime.sleep(1000)", "--nproc-per-node", "2"
    ).wait()
    assert code == 1
    summary = err[err.index("FAILED") :]
    assert "rank 1" in summary and "Traceback (most recent call last)" in summary
    assert err.rstrip().splitlines()[-2:] == ["ValueError: boom", "=" * 60]


def test_the_store_is_there_before_any_rank_and_after_rank_0(tmp_path: Path) -> None:
    """Plain torch.distributed works, also with env:// and no adapter."""
    code, out, err = Job(
        tmp_path,
        """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        x = torch.ones(1) * RANK
        dist.all_reduce(x)
        print("sum", x.item())
        dist.destroy_process_group()
        """,
        "--nproc-per-node", "2",
    ).wait()  # fmt: skip
    assert code == 0, err
    lines = [line for line in out.splitlines() if ": [Gloo] " not in line]  # printed by gloo itself in torch 2.9
    assert sorted(lines) == ["[0]: sum 1.0", "[1]: sum 1.0"]


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGUSR1]
)
def test_signals_stop_everything(tmp_path: Path, signum: int) -> None:
    """Workers get the very signal, and may take their time; exit code as torchrun's."""
    job = Job(
        tmp_path,
        f"""
        import signal, subprocess
        def told(*_):
            print("told")
            time.sleep(1)
            print("saved")
            sys.exit(0)
        signal.signal({int(signum)}, told)
        subprocess.Popen(["sleep", "1000"])
        print("up")
        time.sleep(1000)
        """,
        "--nproc-per-node", "2", "--emulate-nodes", "2", "--signals-to-handle", "SIGUSR1,SIGTERM,SIGINT",
        forked=False,  # no other processes than those of a job
    )  # fmt: skip
    job.until_printed("up", 2)
    family = job.family()
    assert len(family) == 6  # two agents, two workers, two of theirs
    os.kill(job.process.pid, signum)
    if signum == signal.SIGTERM:
        job.until_printed("told", 2)
        os.kill(job.process.pid, signum)  # a cluster repeats it
    code, out, err = job.wait()
    assert code == 1
    assert out.count("told") == out.count("saved") == 2, out
    assert f"{signal.Signals(signum).name}: stopping (workers have 30 s)" in err
    deadline = time.monotonic() + 10  # orphans that were killed are reaped by init, when it gets to it
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in family):
        time.sleep(0.05)
    assert [pid for pid in family if psutil.pid_exists(pid)] == []


STUBBORN = """
    import signal
    for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, lambda *a: print("no"))
    print("up")
    while True: time.sleep(1)
    """


def test_a_second_interrupt_does_not_wait_for_stubborn_workers(tmp_path: Path) -> None:
    job = Job(tmp_path, STUBBORN, "--nproc-per-node", "1", "--shutdown-timeout", "1000")
    job.until_printed("up")
    job.process.send_signal(signal.SIGINT)
    job.until_printed("no")
    job.process.send_signal(signal.SIGINT)
    assert job.wait()[0] == 1


def test_stubborn_workers_are_killed_after_the_shutdown_timeout(tmp_path: Path) -> None:
    job = Job(tmp_path, STUBBORN, "--nproc-per-node", "1", "--shutdown-timeout", "1")
    job.until_printed("up")
    job.process.terminate()
    assert job.wait()[0] == 1


def test_the_launchers_death_ends_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "print('up')\ntime.sleep(1000)", "--nproc-per-node", "2")
    job.until_printed("up", 2)
    family = job.family()
    job.process.kill()
    job.process.wait()
    deadline = time.monotonic() + DEADLINE_S
    while any(psutil.pid_exists(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)


TWO = ["--nnodes", "2", "--nproc-per-node", "1", "--ff-config", "c.json"]
SECRET = '{"enabled": true, "secret": "a secret of sixteen"}'


@pytest.mark.parametrize(
    ("second", "options", "config", "words"),
    [
        ("1", ["--nproc-per-node", "3"], SECRET, "--nproc-per-node is 3, at node 0 it is 1"),
        pytest.param("1", ["--max-restarts", "2"], SECRET.replace("}", ', "replicas": 0}'),
                     'setting "replicas"', marks=pytest.mark.slow),
        pytest.param("1", [], SECRET.replace("a secret", "no secret"), "node 1 (HOST) does not know the job's secret",
                     marks=pytest.mark.slow),
        pytest.param("0", [], SECRET, "--node-rank 0", marks=pytest.mark.slow),
    ],
    ids=["other size", "other settings", "other secret", "node 0 twice"],
)  # fmt: skip
def test_nodes_that_do_not_fit_end_on_both_sides(
    tmp_path: Path, second: str, options: list[str], config: str, words: str
) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    jobs = []
    for node, text, more in (("0", SECRET, []), (second, config, options)):
        place = tmp_path / str(len(jobs))
        place.mkdir()
        (place / "c.json").write_text(text)
        address = ["--master-addr", "127.0.0.1", "--master-port", port, "--node-rank", node]
        jobs.append(Job(place, "print('ran')", *TWO, *more, *address))
        if len(jobs) == 1 and second == "0":
            torch_store.find_controller("127.0.0.1", int(port), DEADLINE_S)  # the other launcher listens
    for code, out, err in [job.wait() for job in jobs]:
        assert code != 0 and "ran" not in out
        assert words.replace("HOST", socket.gethostname()) in err, err


def test_a_schedulers_signal_to_every_launcher(tmp_path: Path) -> None:
    """As Slurm sends it: each rank gets it once, and may take its time; exit code 1 on every node, as torchrun's."""
    import socket

    (tmp_path / "c.json").write_text(SECRET)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = """
        import signal
        def told(*_):
            print("told", flush=True)
            time.sleep(0.5)
            print("saved", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, told)
        print("up", flush=True)
        time.sleep(1000)
        """
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        options = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--ff-config", str(tmp_path / "c.json")]
        jobs.append(Job(tmp_path / name, code, *options))
    for job in jobs:
        job.until_printed("up")
    for job in reversed(jobs):
        job.process.terminate()
    for status, out, err in [job.wait() for job in jobs]:
        assert status == 1 and (out.count("told"), out.count("saved")) == (1, 1), (out, err)


def test_two_machines(tmp_path: Path) -> None:
    """Two launchers, as on two hosts: the second finds the controller through the first one's store."""
    import socket

    (tmp_path / "c.json").write_text('{"enabled": true, "secret": "a secret of sixteen"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port, "--nproc-per-node", "2",
               "--ff-config", str(tmp_path / "c.json")]  # fmt: skip
    code = "print('group', os.environ['GROUP_RANK'], os.environ['LOCAL_RANK'], RANK)"
    jobs = []
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        jobs.append(Job(tmp_path / node, code, *options, "--node-rank", node))
    results = [job.wait() for job in jobs]
    assert [code for code, _, _ in results] == [0, 0], results
    assert sorted(results[1][1].splitlines()) == ["[2]: group 1 0 2", "[3]: group 1 1 3"]
