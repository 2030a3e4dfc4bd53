"""The recovery benchmark: what it computes from events, and that all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_recovery  # noqa: E402
from bench.follow import JsonLines, Watch  # noqa: E402
from bench.jobs import Job, JobFailed  # noqa: E402
from bench.leaks import Footprint, compare  # noqa: E402
from bench.numbers import medians, spread, steps_between  # noqa: E402

KEYS = {
    "kill_to_step_s", "beyond_iteration_s", "kill_to_step_no_spare_s", "baseline_restart_s", "ratio", "bit_exact",
    "phases", "lost_ms_20m", "iteration_with_s", "iteration_without_s", "cpu_s_per_version", "leak", "load",
}  # fmt: skip


def append(path: Path, *events: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_lines_are_read_once_and_torn_ones_never(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "log")
    assert lines.read() == []
    append(tmp_path / "log", {"a": 1})
    with open(tmp_path / "log", "a") as file:
        file.write('{"a": ')
    assert lines.read() == [{"a": 1}]
    with open(tmp_path / "log", "a") as file:
        file.write("2}\nnot json\n")
    assert lines.read() == [{"a": 2}]
    assert lines.read() == []


def test_watch_knows_who_plays_what_and_which_spares_wait(tmp_path: Path) -> None:
    path, watch = tmp_path / "events.jsonl", Watch(tmp_path)
    append(
        path,
        {"kind": "node_start", "t": 1.0, "node": 0, "pid": 10},
        {"kind": "worker_start", "t": 1.0, "rank": 0, "pid": 11, "node": 0, "warm": False},
        {"kind": "training_start", "t": 2.0},
        {"kind": "commit", "t": 3.0, "W": 0},
        {"kind": "spare_ready", "t": 3.0, "node": 0},
    )
    watch.update()
    assert (watch.pids, watch.agents, watch.spares, watch.w, watch.training) == ({0: 11}, {0: 10}, {0: 1}, 0, True)
    append(
        path,
        {"kind": "halt", "t": 4.0},
        {"kind": "worker_start", "t": 4.0, "rank": 0, "pid": 12, "node": 0, "warm": True},
    )
    watch.update()
    assert (watch.pids, watch.spares, watch.recovering) == ({0: 12}, {0: 0}, True)
    append(path, {"kind": "failover", "t": 5.0, "v_star": 0}, {"kind": "job_end", "t": 6.0, "code": 1})
    watch.update()
    assert (watch.recovering, len(watch.failovers), watch.ended) == (False, 1, 1)


def test_a_spare_that_takes_over_before_it_is_ready_does_not_count(tmp_path: Path) -> None:
    path, watch = tmp_path / "events.jsonl", Watch(tmp_path)
    append(path, {"kind": "worker_start", "t": 4.0, "rank": 0, "pid": 12, "node": 1, "warm": True})
    append(path, {"kind": "spare_ready", "t": 5.0, "node": 1})
    watch.update()
    assert watch.spares == {1: 0}


def test_numbers() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3, "values": [3.0, 1.0, 2.0]}
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 3.0}]) == {"a": 2.0}
    lines = [{"step": step, "t": t} for step, t in ((1, 0.0), (2, 1.0), (3, 3.0), (3, 4.0), (4, 8.0))]
    assert steps_between(lines, 0) == [(2, 1.0), (3, 2.0), (4, 4.0)]  # a repeated step is no interval
    assert steps_between(lines, 1) == [(3, 2.0), (4, 4.0)]


@pytest.fixture()
def held(tmp_path: Path) -> Iterator[Path]:
    """A file that this process has open, and a thread that it runs."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    path = tmp_path / "open"
    before = Footprint.of(os.getpid())
    with open(path, "w"):
        thread.start()
        during = Footprint.of(os.getpid())
        done.set()
        thread.join()
    path.write_text(f"{during.descriptors - before.descriptors} {during.threads - before.threads}")
    yield path


def test_a_footprint_counts_descriptors_and_threads(held: Path) -> None:
    assert held.read_text() == "1 1"


def test_a_footprint_counts_shared_memory() -> None:
    from ff_core.copy.memory import allocate

    before = Footprint.of(os.getpid()).shared_bytes
    memory = allocate("test", 1 << 20)
    try:
        import mmap

        with mmap.mmap(memory, 1 << 20):
            assert Footprint.of(os.getpid()).shared_bytes == before + (1 << 20)
    finally:
        os.close(memory)
    assert Footprint.of(os.getpid()).shared_bytes == before


def test_growth_is_a_leak_above_5_percent() -> None:
    early = {"rank 0": Footprint(100, 20, 1 << 20, 100 << 20)}
    same = compare(early, {"rank 0": Footprint(105, 21, 1 << 20, 105 << 20)}, 20)
    assert same["within_5_percent"]
    for late, what in (
        (Footprint(106, 20, 1 << 20, 100 << 20), "descriptors 100 -> 106"),
        (Footprint(100, 22, 1 << 20, 100 << 20), "threads 20 -> 22"),
        (Footprint(100, 20, 2 << 20, 100 << 20), f"shared_bytes {1 << 20} -> {2 << 20}"),
        (Footprint(100, 20, 1 << 20, 120 << 20), f"resident_bytes {100 << 20} -> {120 << 20}"),
    ):
        assert compare(early, {"rank 0": late}, 20)["grown"] == [f"rank 0: {what}"]


def test_a_job_that_ends_badly_shows_its_last_words(tmp_path: Path) -> None:
    with Job(tmp_path, [sys.executable, "-c", "print('no luck'); raise SystemExit(7)"]) as job:
        job.process.wait(60)
        with pytest.raises(JobFailed, match=r"exit code 7 before the end(.|\n)*no luck"):
            job.check(time.monotonic() + 60, "the end")


def test_leaving_a_job_ends_its_processes(tmp_path: Path) -> None:
    nested = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    with Job(tmp_path, [sys.executable, "-c", f"{nested}; print(p.pid, flush=True); time.sleep(600)"]) as job:
        deadline = time.monotonic() + 60
        while not job.log.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child = int(job.log.read_text())
    assert not job.running
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kills", "0"), "--kills 0: allowed: 1 or more"),
        (("--only", "leak"), "--failovers 0: allowed: 3 or more"),
        (("--only", "everything"), "invalid choice: 'everything'"),
        (("--framework", "megatron", "--only", "overhead"), "allowed with --framework megatron: recovery, cold"),
        (("--framework", "jax"), "invalid choice: 'jax'"),
    ],
)
def test_bad_arguments(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench_recovery.parse_arguments(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recovery_of_a_megatron_job(tmp_path: Path) -> None:
    words = ["--framework", "megatron", "--only", "recovery", "--quick", "--json", "--out", str(tmp_path / "bench")]
    done = subprocess.run(
        [sys.executable, "scripts/bench_recovery.py", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["framework"] == "megatron" and results["bit_exact"]
    assert results["kill_to_step_s"]["n"] == 2
    assert all(kill["warm"] for kill in results["kills"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/bench_recovery.py", "--quick", "--json", "--out", str(tmp_path / "bench")], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() >= KEYS
    assert results["bit_exact"]
    assert results["kill_to_step_s"]["n"] == 2
    assert all(kill["warm"] for kill in results["kills"])
    assert results["leak"]["failovers"] == 3
    assert json.loads((tmp_path / "bench/results.json").read_text()) == results
