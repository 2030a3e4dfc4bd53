"""The demonstration: it says yes only when everything is the same, and every way it can fail leaves a record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import demo  # noqa: E402
from bench.results import differences  # noqa: E402

RANKS = 4


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """The demonstration changes what SIGTERM does to its process, which is pytest's here."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def leave_results(directory: Path, **changed: Any) -> Path:
    """What a job of two steps leaves. changed: values of rank 1's result that are different."""
    directory.mkdir(parents=True)
    for rank in range(RANKS):
        result: dict[str, Any] = {
            "rank": rank, "steps": 2, "parameters_sha256": "a" * 64, "optimizer_sha256": f"{rank}" * 64,
            "rng_sha256": f"{rank}" * 64, "losses": {"1": 2.5, "2": 2.25},
        }  # fmt: skip
        if rank == 1:
            result.update(changed)
        (directory / f"result.rank{rank}.json").write_text(json.dumps(result))
    log_losses(directory, (1, 2.5), (2, 2.25))
    return directory


def log_losses(directory: Path, *losses: tuple[int, float]) -> None:
    lines = [json.dumps({"step": step, "loss": loss, "t": 0.0}) for step, loss in losses]
    (directory / "losses.jsonl").write_text("\n".join(lines) + "\n")


def test_same_results_have_no_differences(tmp_path: Path) -> None:
    ours, theirs = leave_results(tmp_path / "a"), leave_results(tmp_path / "b")
    assert differences(ours, theirs, RANKS) == []
    log_losses(ours, (1, 2.5), (2, 2.25), (2, 2.25))  # a repeated iteration logs again
    assert differences(ours, theirs, RANKS) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"parameters_sha256": "b" * 64}, "rank 1: parameters bbbbbbbbbbbbbbbb instead of aaaaaaaaaaaaaaaa"),
        ({"optimizer_sha256": "b" * 64}, "rank 1: optimizer state bbbbbbbbbbbbbbbb instead of 1111111111111111"),
        ({"rng_sha256": "b" * 64}, "rank 1: random numbers bbbbbbbbbbbbbbbb instead of 1111111111111111"),
        ({"steps": 1}, "rank 1 made 1 steps instead of 2"),
        ({"losses": {"2": 2.2500001}}, "rank 1, step 2: loss 2.2500001 instead of 2.25"),
    ],
)
def test_every_difference_is_named(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    ours, theirs = leave_results(tmp_path / "a", **changed), leave_results(tmp_path / "b")
    assert differences(ours, theirs, RANKS) == [line]


def test_missing_results_and_logged_losses_are_differences(tmp_path: Path) -> None:
    ours, theirs = leave_results(tmp_path / "a"), leave_results(tmp_path / "b")
    (ours / "result.rank3.json").unlink()
    log_losses(ours, (1, 2.5), (1, 2.75))
    assert differences(ours, theirs, RANKS) == [
        f"rank 3 left no result in {ours}",
        "step 1: logged losses 2.5 and 2.75 instead of 2.5",
        "step 2: logged losses none instead of 2.25",
    ]
    (theirs / "losses.jsonl").unlink()
    assert f"no losses in {theirs}" in differences(ours, theirs, RANKS)


def test_a_job_that_fails_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"]
    monkeypatch.setattr(demo, "torchrun_command", lambda *_: broken)
    assert demo.main(["--out", str(tmp_path / "out")]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["bit_exact"]
    assert "exit code 3" in report["error"]
    assert report["error"].endswith("out of luck")
    printed = capsys.readouterr().out
    assert "out of luck" in printed
    assert printed.endswith("bit-exact: no\n")
    # and the next attempt may use the same directory
    assert demo.main(["--out", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize("words", [("--steps", "5"), ("--config", "nowhere.json")])
def test_bad_arguments(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(words)
    assert caught.value.code == 2
    assert f"{words[0]} {words[1]}: " in capsys.readouterr().err


def test_someone_elses_directory_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path)])
    assert "allowed: a directory that is new, empty, or that of an earlier demonstration" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("target", "extra"), [("demo", []), ("demo-megatron", ["--framework", "megatron"])])
def test_make_demo(tmp_path: Path, target: str, extra: list[str]) -> None:
    """As a user runs it, with a smaller model."""
    assert shutil.which("make")
    recipe = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert " ".join(["python scripts/demo.py", *extra]) in recipe
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--out", str(out), "--size", "tiny", "--steps", "60", *extra], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("bit-exact: yes\n")
    report = json.loads((out / "report.json").read_text())
    assert report["bit_exact"]
    assert [recovery["dead"] for recovery in report["job"]["failovers"]] == [[2], [0]]
    assert report["job"]["restarts"] == 0
    assert "<svg" in Path(report["page"]).read_text()
