"""`fftrain` as a person meets it: commands, mistakes, exit codes. Nothing is started for a mistake."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ff_core import __version__
from ff_core.launch.cli import main


@pytest.fixture
def fftrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of a command that must not get as far as an agent."""
    from ff_core.launch import agents

    def nothing_may_start(*arguments: object) -> None:
        raise AssertionError("an agent was started")

    monkeypatch.setattr(agents.Agents, "start", nothing_may_start)
    (tmp_path / "train.py").write_text("raise SystemExit('the script ran')")
    (tmp_path / "bad.json").write_text(json.dumps({"ff_failover": {"enabled": True, "spares": -3}}))
    (tmp_path / "good.json").write_text(json.dumps({"ff_failover": {"enabled": True}}))
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Run = Callable[..., "tuple[int, str, str]"]


def test_version_and_help(fftrain: Run) -> None:
    assert fftrain("--version") == (0, f"fftrain {__version__}\n", "")
    code, out, _ = fftrain("--help")
    assert code == 0 and "fftrain run" in out and "fftrain report" in out
    code, out, _ = fftrain("run", "--help")
    assert code == 0 and all(word in out for word in ("--spares", "--emulate-nodes", "--inject", "--nproc-per-node"))


def test_unknown_command(fftrain: Run) -> None:
    for argv, said in (((), "a command is needed"), (("train",), "'train' is not a command")):
        code, _, err = fftrain(*argv)
        assert code == 2 and said in err and "allowed: run, drain, report, patch" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gone.py"], "gone.py: no such training script"),
        (["train.py", "--deepspeed_config", "bad.json"], "bad.json: ff_failover.spares = -3: allowed"),
        (["--ff-config", "bad.json", "train.py"], "bad.json: ff_failover.spares = -3: allowed"),
        (["--spares", "-1", "train.py"], "--spares -1"),
        (["--inject", "kill rank=1 iteration=1 at=step", "train.py"], "rank=1: allowed: 0 to 0"),
        (["--inject", "kill rank=0 iteration=1 at=noon", "train.py"], "at=noon: allowed"),
        (["--nnodes", "1:2", "train.py"], "--nnodes 1:2"),
        (["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "train.py"], '"secret" is missing'),
        (["--out-dir", "train.py/out", "train.py"], "--out-dir"),
    ],
)
def test_mistakes(fftrain: Run, argv: list[str], said: str) -> None:
    code, out, err = fftrain("run", *argv)
    assert code == 2 and out == "" and said in err and err.startswith("fftrain run: error: ")


def test_taken_port_is_named(fftrain: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = fftrain("run", "--master-port", str(port), "train.py")
    assert code == 2 and f"port {port}" in err and "taken" in err


def test_report_needs_a_directory(fftrain: Run) -> None:
    assert fftrain("report", "nowhere")[0] != 0
