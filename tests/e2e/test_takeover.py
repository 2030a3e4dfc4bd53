"""Jobs on several hosts whose node 0 is killed, with the controller and torch's store: another host has them then."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ff_core.contract.terms import EPOCHS_A_TERM
from tests.e2e import jobs
from tests.e2e.compare import results
from tests.e2e.jobs import ENV, committed, pid_of, read_events, wait_for
from tests.e2e.on_hosts import (
    assert_same,
    command,
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


def begun(place: Path, hosts: Hosts, pause: float = 0.9, **settings: Any) -> dict[int, subprocess.Popen[Any]]:
    """Two nodes train and the third host stands by, with both spares ready."""
    started = start(place, hosts, (0, 1), pause=pause, **settings)
    words = command(place, hosts, 2, "--nnodes", "2", "--standby", pause=pause, **settings)
    started[2] = hosts.start(2, words, log(place, 2), ENV)
    wait_for(place, ready(2), 90)
    wait_for(place, committed(4))
    return started


def seen(kind: str, count: int = 1, **fields: Any) -> Any:
    """Whether there are `count` events of `kind` with these fields."""
    return lambda events: sum(e["kind"] == kind and fields.items() <= e.items() for e in events) >= count


def assert_ended_well(place: Path, started: dict[int, subprocess.Popen[Any]], *numbers: int) -> None:
    for number in numbers:
        assert started[number].wait(200) == 0, log(place, number).read_text()[-6000:]


def assert_taken_over(events: list[dict[str, Any]]) -> None:
    """Host 1 has the controller, and the standby plays the ranks of host 0."""
    (takeover,) = [event for event in events if event["kind"] == "takeover"]
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert takeover["node"] == 1 and takeover["lost"] == [0]
    assert takeover["epoch"] == failover["epoch"] > 0 and takeover["epoch"] % EPOCHS_A_TERM == 0
    assert failover["newcomers"] == [0, 1] and failover["spare"] == "warm"
    assert failover["v_star"] >= max(e["W"] for e in events if e["kind"] == "commit" and e["epoch"] == 0)


def test_the_launcher_of_node_0_is_killed(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """SIGKILL for this one process. Its agent and its workers end with it. Losses are those of plain torchrun, to the
    bit."""
    started = begun(tmp_path, three)
    os.kill(started[0].pid, signal.SIGKILL)
    hurry(tmp_path)
    assert_ended_well(tmp_path, started, 1, 2)
    assert_same(tmp_path, uninterrupted)
    assert_taken_over(read_events(tmp_path))
    assert three.pids(0) == []


@pytest.mark.slow
def test_all_of_node_0_is_killed(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    started = begun(tmp_path, three)
    three.power_off(0)
    assert_ended_well(tmp_path, started, 1, 2)
    assert_same(tmp_path, uninterrupted)
    assert_taken_over(read_events(tmp_path))
    assert "the launcher of node 0 is dead" in log(tmp_path, 1).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_the_launcher_is_killed_while_a_rank_is_replaced(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any], rank: int
) -> None:
    """In the middle of a failover; the rank is of node 0 or of the node that takes over."""
    started = begun(tmp_path, three, spares=1)
    wait_for(tmp_path, seen("spare_ready", 4), 90)
    os.kill(pid_of(tmp_path, rank), signal.SIGKILL)
    wait_for(tmp_path, seen("halt"))
    os.kill(started[0].pid, signal.SIGKILL)
    assert_ended_well(tmp_path, started, 1, 2)
    assert_same(tmp_path, uninterrupted)
    assert seen("takeover", node=1)(read_events(tmp_path))


@pytest.mark.slow
def test_the_next_controller_is_killed_too(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """The third host ends the job, alone, with all ranks."""
    started = begun(tmp_path, three, pause=2.5, spares=2)  # its spares must be ready before the training ends
    os.kill(started[0].pid, signal.SIGKILL)
    wait_for(tmp_path, seen("failover"))
    before = sum(event["kind"] == "spare_ready" and event["node"] == 2 for event in read_events(tmp_path))
    wait_for(tmp_path, seen("spare_ready", max(before, 4), node=2), 90)
    os.kill(started[1].pid, signal.SIGKILL)
    assert_ended_well(tmp_path, started, 2)
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    takeovers = [event for event in events if event["kind"] == "takeover"]
    assert [(event["node"], event["lost"]) for event in takeovers] == [(1, [0]), (2, [1])]
    assert takeovers[1]["epoch"] >= takeovers[0]["epoch"] + EPOCHS_A_TERM


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_launcher_of_a_deepspeed_job_is_killed(tmp_path: Path, three: Hosts) -> None:
    """ZeRO 1: each rank has its own share of the optimizer. Losses, weights and optimizer as uninterrupted."""
    file = ROOT / "configs" / "deepspeed" / "zero1_bf16.json"
    words = ["--deepspeed_config", str(file), "--size", "tiny", "--steps", "60"]
    script = str(ROOT / "scripts" / "train_gpt.py")

    def places(folder: Path) -> list[str]:
        return ["--result", str(folder / "result.json"), "--data-cache", str(tmp_path / "data")]

    wanted = results(jobs.uninterrupted(script, words, places))
    started = {}
    for number, more in enumerate(([], [], ["--standby"])):
        line = command(tmp_path, three, number, "--nnodes", "2", *more)
        line = [*line[: line.index(str(jobs.TOY))], script, *words, *places(tmp_path)]
        started[number] = three.start(number, line, log(tmp_path, number), ENV)
        if number == 0:
            wait_until_said(tmp_path, 0, "still to come")
    wait_for(tmp_path, committed(8))
    os.kill(started[0].pid, signal.SIGKILL)
    assert_ended_well(tmp_path, started, 1, 2)
    assert seen("takeover", node=1)(read_events(tmp_path))
    ours = results(tmp_path)
    for rank, theirs in wanted.items():
        assert {key: value for key, value in ours[rank].items() if key != "losses"} == {
            key: value for key, value in theirs.items() if key != "losses"
        }, f"rank {rank} differs"
        losses = ours[rank]["losses"]
        assert losses and all(theirs["losses"][step] == loss for step, loss in losses.items())


@pytest.mark.slow
@pytest.mark.parametrize("same_command", [True, False])
def test_host_0_comes_again_when_another_one_has_the_controller(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any], same_command: bool
) -> None:
    """There is no standby: the job waits, and says with which command. Host 0 runs it, and gets its ranks again. With
    its own command it begins the job a second time, is told so, and stands by."""
    settings = {"persist_dir": str(tmp_path / "versions"), "persist_interval_s": 2.0} if same_command else {}
    started = start(tmp_path, three, (0, 1), pause=0.9, **settings)
    wait_for(tmp_path, committed(4))
    three.power_off(0)
    endpoint = f"{three.addresses[1]}:29503"
    wait_until_said(tmp_path, 1, f"with --standby and --rdzv-endpoint {endpoint}")
    if same_command:
        words = command(tmp_path, three, 0, "--nnodes", "2", pause=0.9, **settings)
    else:
        words = command(tmp_path, three, 0, "--nnodes", "2", "--standby", pause=0.9)
        words[words.index("--rdzv-endpoint") + 1] = endpoint
    started[2] = three.start(0, words, log(tmp_path, 2), ENV)
    assert_ended_well(tmp_path, started, 1, 2)
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert failover["newcomers"] == [0, 1] and failover["spare"] == "cold"
    moved = [event["node"] for event in events if event["kind"] == "worker_start" and event["rank"] == 0]
    assert moved == [0, 2]
    assert len([event for event in events if event["kind"] == "job_end"]) == 1
