"""A DeepSpeed script that builds its configuration itself: what it says holds for the whole job, or ends it in words
with a remedy that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import Job, fftrain

SCRIPT = str(Path(__file__).with_name("builds_its_config.py"))
ORIGIN = "the script's configuration"


def run(out: Path, block: dict[str, Any], *options: str, of_rank: tuple[str, str] | None = None) -> Job:
    script = [SCRIPT, "--result", str(out / "result.json"), *(["--of-rank", *of_rank] if of_rank else [])]
    script += ["--block", *[f"{name}={json.dumps(value)}" for name, value in block.items()]]
    return fftrain(out, script, "--emulate-nodes", "2", *options, ranks=2)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def secret() -> dict[str, Any]:
    return {"secret": "a secret that the script made"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, secret: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the script with a secret of its own, which the launcher is given in time."""
    out = tmp_path_factory.mktemp("in-time")
    (out / "ff.json").write_text(json.dumps(secret))
    job = run(out, secret, "--ff-config", str(out / "ff.json"))
    assert job.code == 0, job.stderr[-3000:]
    (told,) = job.of("settings")
    assert told["given"] == {"secret": ["(not shown)", str(out / "ff.json")]} and secret["secret"] not in job.stderr
    return results(out)


def test_it_holds(tmp_path: Path, uninterrupted: list[dict[str, Any]]) -> None:
    block = {"transport": "shm", "hang_timeout_s": 60.0, "halt_timeout_s": 20.0, "heartbeat_interval_s": 0.25}
    job = run(tmp_path, block, "--inject", "kill rank=1 iteration=4 at=backward")
    assert job.code == 0, job.stderr[-3000:]
    assert results(tmp_path) == uninterrupted and uninterrupted[0]["steps"] == 10
    assert len(job.of("failover")) == 1
    assert "replicas travel by shm" in job.stderr
    (told,) = job.of("settings")
    assert told["given"] == {name: [value, ORIGIN] for name, value in block.items()}


@pytest.mark.usefixtures("uninterrupted")  # the remedy in the message
def test_a_secret_comes_too_late(tmp_path: Path, secret: dict[str, Any]) -> None:
    job = run(tmp_path, secret)
    assert job.code == 1 and not job.of("training_start")
    message = (
        f"{ORIGIN}: ff_failover.secret = (not shown), but the job was started with a value of the launcher's own. "
        "Processes need this field before the script runs. Give it in time: `fftrain run --ff-config FILE ...`, where "
        'FILE has {"secret": ...}; the script may then say the same, or nothing'
    )
    assert message in job.stderr


@pytest.mark.slow  # tests/config and tests/controller have the parts
def test_what_the_launcher_was_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "ff.json").write_text('{"interval": 2}')
    job = run(tmp_path, {"interval": 3}, "--ff-config", str(tmp_path / "ff.json"))
    assert job.code == 1 and not job.of("training_start")
    assert f"{ORIGIN}: ff_failover.interval = 3, but {tmp_path}/ff.json has 2; allowed: give it in one" in job.stderr


@pytest.mark.slow  # tests/config and tests/controller have the parts
def test_ranks_that_say_different_things(tmp_path: Path) -> None:
    job = run(tmp_path, {"commit": "strict"}, of_rank=("1", "interval=3"))
    assert job.code == 1 and not job.of("training_start")
    values = {0: "'auto' (default)", 1: f"3 ({ORIGIN})"}
    texts = [f"interval is {values[a]} on rank {a} and {values[b]} on rank {b}" for a, b in ((0, 1), (1, 0))]
    assert any(f"the ranks' settings differ: {text}" in job.stderr for text in texts)
