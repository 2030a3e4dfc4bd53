"""`fftrain drain`: what is asked, of whom, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.controller.server import ControllerServer
from ff_core.launch import torch_store
from ff_core.launch.cli import main

SECRET = "a secret of sixteen"


@pytest.fixture
def job() -> Iterator[str]:
    """The endpoint of a job that has not begun."""
    store, port = torch_store.host_store("127.0.0.1", 0)
    spec = JobSpec(["train.py"], 1, 1, "127.0.0.1", port, config=Settings().to_wire())
    server = ControllerServer(spec, SECRET.encode(), "127.0.0.1")
    torch_store.publish_controller(store, server.start())
    yield f"127.0.0.1:{port}"
    server.fail("the test is over")
    server.wait()


def config(place: Path, **fields: str) -> str:
    (place / "ff.json").write_text(json.dumps({"enabled": True, **fields}))
    return str(place / "ff.json")


def test_the_controllers_answer_comes_back(tmp_path: Path, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "1", "--rdzv-endpoint", job, "--ff-config", config(tmp_path, secret=SECRET)]) == 1
    assert "fftrain: node 1 stays: the job has not begun" in capsys.readouterr().err


def test_who_does_not_know_the_secret_is_turned_away(
    tmp_path: Path, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = config(tmp_path, secret="another one of sixteen")
    assert main(["drain", "1", "--rdzv-endpoint", job, "--ff-config", words]) == 2
    assert "does not know the job's secret" in capsys.readouterr().err


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, good = config(tmp_path), str(tmp_path / "good.json")
    (tmp_path / "good.json").write_text(json.dumps({"enabled": True, "secret": SECRET}))
    for words, said in (
        (["1", "--rdzv-endpoint", "127.0.0.1:1", "--ff-config", place], '"secret" is missing'),
        (["one", "--rdzv-endpoint", "127.0.0.1:1", "--ff-config", place], "invalid int value: 'one'"),
        (["1", "--ff-config", place], "--rdzv-endpoint"),
        (["1", "--rdzv-endpoint", "127.0.0.1:x", "--ff-config", good], "HOST:PORT"),
        (["1", "--rdzv-endpoint", "127.0.0.1:1", "--ff-config", good], "no job at --rdzv-endpoint 127.0.0.1:1"),
    ):
        assert main(["drain", *words]) == 2
        assert said in capsys.readouterr().err
