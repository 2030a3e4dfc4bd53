"""How a job starts and ends: exit codes, reasons, restarts."""

from __future__ import annotations

import pytest

from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import Settings
from ff_core.contract.messages import CONTROLLER_TO_AGENT, make
from ff_core.controller.membership import Node
from ff_core.errors import ProtocolError
from tests.controller.harness import Job

# ---- start-up ------------------------------------------------------------------------------------------------------


def test_start_waits_for_all_nodes_and_spreads_ranks() -> None:
    job = Job(nodes=2, nproc=2)
    starts = dict(job.out.take("start"))
    assert {node: message["ranks"] for node, message in starts.items()} == {
        0: [[0, "s0-r0"], [1, "s0-r1"]],
        1: [[2, "s0-r2"], [3, "s0-r3"]],
    }


def test_arenas_once_every_rank_said_what_it_protects() -> None:
    job = Job(nodes=2, nproc=1)
    job.protect(0)
    assert not job.out.take("arenas")
    job.protect(1, local_bytes=4096)
    arenas = dict(job.out.take("arenas"))
    assert arenas[0]["own"][0]["sent_bytes"] == 8192 and list(arenas[0]["replicas"]) == [1]
    assert arenas[1]["own"][1]["local_bytes"] == 4096 and arenas[0]["replicas"][1]["local_bytes"] == 0
    job.heard(0, "arenas_ready", epoch=0)
    assert not job.out.take("placement")
    job.heard(1, "arenas_ready", epoch=0)
    assert {node: message["holders"] for node, message in job.out.take("placement")} == {
        0: {0: [[1, "127.0.0.1", 4001]]}, 1: {1: [[0, "127.0.0.1", 4000]]}
    }  # fmt: skip


def test_different_configurations_end_the_job() -> None:
    job = Job()
    job.protect(0)
    job.protect(1, settings={**job.settings, "interval": 3})
    assert job.out.result == (
        1,
        "the ranks' settings differ: interval is 3 (default) on rank 1 and 'auto' (default) on rank 0",
    )


def test_what_the_script_brought_holds_for_controller_and_agents() -> None:
    job = Job()
    given = FailoverConfig(halt_timeout_s=3.0, heartbeat_interval_s=0.05, heartbeat_timeout_s=0.2, join_timeout_s=7.0)
    settings = Settings().joined(Settings.given(given, "the script"))
    job.protect(0, settings=settings.to_wire())
    job.out.clock += 1.0  # node 0 is silent longer than the new limit allows, and in time by the old one
    job.protect(1, settings=settings.to_wire())
    assert job.state.config == settings.config
    assert [message["settings"] for _, message in job.out.take("arenas")] == [settings.to_wire()] * 2
    job.controller.tick()
    assert job.out.abandoned == [], "agents could not beat faster before they knew that they must"
    (told,) = [fields["given"] for kind, fields in job.out.events if kind == "settings"]
    assert told == settings.told() and told["halt_timeout_s"] == (3.0, "the script")
    assert (
        "settings: heartbeat_interval_s = 0.05 (the script), heartbeat_timeout_s = 0.2 (the script), "
        in job.out.said[0]
    )


def test_nothing_is_said_of_defaults() -> None:
    job = Job().start()
    assert not [text for text in job.out.said if "settings" in text]


def test_memory_is_checked_per_machine_before_anything_is_allocated() -> None:
    job = Job(nodes=2, nproc=1, free_bytes=100_000)
    for rank in job.ranks:
        job.protect(rank, sent_bytes=1 << 20)
    assert job.out.result is not None and job.out.result[0] == 1 and not job.out.take("arenas")
    text = job.out.result[1]
    assert "node 0 (host0)" in text and "node 1 (host1)" in text and "free 100000 bytes" in text
    assert "all nodes on this machine" in text


def test_memory_limit_counts_per_node() -> None:
    job = Job(nodes=2, nproc=1, settings={"memory_limit_bytes": 3 << 20})
    for rank in job.ranks:
        job.protect(rank, sent_bytes=1 << 20)
    assert job.out.result is not None and "memory_limit_bytes 3145728" in job.out.result[1]


def test_an_agent_that_cannot_allocate_ends_the_job() -> None:
    job = Job()
    for rank in job.ranks:
        job.protect(rank)
    job.heard(1, "arenas_failed", epoch=-1, reason="old news")
    assert job.out.result is None
    job.heard(1, "arenas_failed", epoch=0, reason="needed 7 bytes, free 3")
    assert job.out.result == (1, "node 1: needed 7 bytes, free 3")


def test_nodes_that_do_not_belong_here_are_refused() -> None:
    job = Job()
    with pytest.raises(ProtocolError, match="node 1 is already connected"):
        job.controller.node_up(Node(1, "m", "h", ("h", 1), 1, 0.0))
    job.start().controller.node_down(1, "gone")
    with pytest.raises(ProtocolError, match="gets a number of its own"):
        job.controller.node_up(Node(1, "m", "h", ("h", 1), 1, 0.0))


def test_messages_for_the_other_direction_are_refused() -> None:
    with pytest.raises(ProtocolError, match="controller got 'stop', which agent must not send"):
        Job().controller.handle(0, make(CONTROLLER_TO_AGENT, "stop", code=0, signum=0))


# ---- W -------------------------------------------------------------------------------------------------------------


def test_w_is_what_every_rank_has_committed() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.heard(0, "commit", epoch=0, versions={0: 0})
    job.heard(0, "commit", epoch=0, versions={0: 1})
    assert not job.out.take("w")
    job.heard(1, "commit", epoch=0, versions={1: 0})
    assert [message["version"] for _, message in job.out.take("w")] == [0, 0]
    job.heard(1, "commit", epoch=0, versions={1: 0})
    assert not job.out.take("w"), "the same W is not said twice"


@pytest.mark.parametrize("epoch", [-1, 1, 7])
def test_commits_of_another_epoch_do_not_count(epoch: int) -> None:
    job = Job(nodes=2, nproc=1).start()
    for node in range(2):
        job.heard(node, "commit", epoch=epoch, versions={node: 5})
    assert job.state.w == -1 and not job.out.take("w")


def test_commits_for_a_rank_on_another_node_do_not_count() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.heard(0, "commit", epoch=0, versions={0: 5, 1: 5})
    assert job.state.w == -1


# ---- restarts ------------------------------------------------------------------------------------------------------


def test_death_before_protection_ends_the_job_with_its_last_words() -> None:
    job = Job()
    job.die(1, code=1, tail="SyntaxError: no")
    assert job.out.result == (1, "rank 1 exited with code 1 before training was protected\nSyntaxError: no")


def test_death_before_protection_restarts_the_script_as_often_as_allowed() -> None:
    job = Job(max_restarts=2)
    for count in (1, 2):
        job.out.take("start")
        job.die(0, code=1)
        starts = job.out.take("start")
        assert [message["restart"] for _, message in starts] == [count, count] and job.out.result is None
        assert starts[0][1]["ranks"] == [[0, f"s{count}-r0"]]
    job.die(0, code=1)
    assert job.out.result is not None and job.out.result[0] == 1


def test_processes_of_the_previous_start_count_for_nothing() -> None:
    job = Job(max_restarts=1).start()
    job.commit(3)
    old = job.state.members.ranks[1].uid
    job.controller.restart_job("because", set())
    job.out.take("start")
    job.heard(1, "worker_exit", rank=1, uid=old, code=-15, tail="", sealed=3, at=0.0)
    job.heard(1, "commit", epoch=0, versions={1: 9})
    assert job.out.result is None and not job.out.take("start")
    assert job.state.w == -1 and job.state.members.ranks[1].committed == (-1, -1)


def test_what_processes_of_the_previous_start_said_last_is_dropped() -> None:
    job = Job(max_restarts=1)
    job.die(0, code=1)
    for rank in job.ranks:
        job.protect(rank)
        job.from_rank(rank, "training")
        job.heard(rank, "worker_started", rank=rank, uid=f"s0-r{rank}", pid=1, warm=False)
        job.heard(rank, "hint", rank=-1, text="from a process that was told to end", site="")
    assert not job.out.take("arenas") and not job.state.is_protecting
    job.spawned()
    for rank in job.ranks:
        assert job.state.members.ranks[rank].uid == f"s1-r{rank}"
        job.protect(rank)
    assert len(job.out.take("arenas")) == 2


def test_a_replacement_that_cannot_go_on_starts_the_script_again() -> None:
    job = Job(max_restarts=1).start()
    job.commit(1)
    job.heard(0, "persisted", rank=0, path="ckpt/1", version=1)
    job.die(1)
    epoch = job.state.epoch
    job.from_rank(1, "unresumable", epoch=epoch - 1, reason="old news")
    assert job.state.restart == 0
    job.from_rank(1, "unresumable", epoch=epoch, reason="its script starts from the beginning")
    assert job.state.restart == 1 and job.out.result is None
    assert [message["restart"] for _, message in job.out.take("start")][-2:] == [1, 1]
    assert "starts from the beginning; the newest saved checkpoint is ckpt/1" in job.out.said[-1]


def test_a_replacement_that_cannot_go_on_ends_a_job_without_restarts() -> None:
    job = Job().start()
    job.commit(1)
    job.die(1)
    job.from_rank(1, "unresumable", epoch=job.state.epoch, reason="no client state")
    assert job.out.result is not None and job.out.result[0] == 1
    assert "no client state" in job.out.result[1] and "--max-restarts N" in job.out.result[1]
    assert "hardware" not in job.out.result[1]


@pytest.mark.parametrize("training", [True, False])
def test_deaths_in_training_are_remembered_after_a_restart(training: bool) -> None:
    job = Job(max_restarts=1)
    if training:
        job.start()
        job.commit(3)
    job.state.members.ranks[1].failures = {4: [0, 1]}
    job.state.left_version = 3
    job.controller.restart_job("because", set())
    assert job.state.members.ranks[1].failures == ({4: [0, 1]} if training else {})
    assert (job.state.w, job.state.is_protecting, job.state.round, job.state.left_version) == (-1, False, None, None)


def test_no_restart_without_all_nodes() -> None:
    job = Job(max_restarts=5).start()
    job.state.members.nodes[1].alive = False
    job.controller.restart_job("a reason", set())
    assert job.out.result == (1, "a reason")


def test_only_the_first_end_counts() -> None:
    job = Job().start()
    job.controller.finish(3, "first")
    job.controller.finish(0, "second")
    job.die(0)
    assert job.out.result == (3, "first") and not job.out.take("halt")
