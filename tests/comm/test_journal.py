"""Solo initialisation repeats what the dead rank saw, and says so when it cannot."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import torch

from ff_core.comm import Journal, large
from ff_core.comm.done import DoneWork
from ff_core.comm.journal import LIMIT
from ff_core.errors import JournalMismatch
from tests.comm import programs_journal
from tests.comm.harness import Job, run


@pytest.fixture(scope="module")
def recorded() -> list[dict[str, Any]]:
    return run(3, programs_journal.record)


def alone(rank: int, program: Any, *args: Any, replay: bytes | None) -> Any:
    with Job(3) as job:
        job.start(rank, program, *args, epoch=1, solo=True, replay=replay)
        return job.results()[0]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_replay_equals_the_recorded_initialisation(recorded: list[dict[str, Any]], rank: int) -> None:
    live = recorded[rank]
    again = alone(rank, programs_journal.replay, replay=live["journal"])
    assert again.pop("unused") == []
    assert again["large"] == float(rank)  # too large for the journal: what this rank alone had
    assert {**again, "large": live["large"]} == live
    assert len(live["journal"]) < 4 * LIMIT


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("shape", ["broadcast(int64[4])", "on group 0", "issued broadcast(int64[3])"]),
        ("dtype", ["broadcast(float32[3])", "issued broadcast(int64[3])"]),
        ("operation", ["barrier()", "issued broadcast(int64[3])"]),
        ("store", ["store.get('default_pg/", "did not ask for it"]),
        ("more", ["barrier()", "issued allgather"]),
    ],
)
def test_mismatch_names_call_and_site(recorded: list[dict[str, Any]], how: str, words: list[str]) -> None:
    message = alone(1, programs_journal.deviate, how, replay=recorded[1]["journal"])
    assert message.startswith("JournalMismatch")
    assert "programs_journal.py:" in message
    for word in words:
        assert word in message


def test_without_a_journal_results_are_local(recorded: list[dict[str, Any]]) -> None:
    message = alone(1, programs_journal.deviate, "dtype", replay=None)
    assert message == "no error"


def test_object_too_large_for_the_journal_is_an_error() -> None:
    journals = run(2, programs_journal.huge_object)
    message = alone(1, programs_journal.huge_object, replay=journals[1])
    assert message.startswith("JournalMismatch")
    assert "object collective" in message


def test_late_groups_agree_after_a_replacement() -> None:
    with Job(3) as job:
        job.start_all(programs_journal.late_groups)
        job.hear("dying", 1)
        job.kill(1)
        job.halt(1)
        job.start(1, programs_journal.late_groups, epoch=1, solo=True)
        job.hear("dropped")
        job.tell("regroup 1")
        results = job.results()
    member, other = 6.0 + 100 * 5.0 + 10000 * 6.0, 6.0 + 10000 * 6.0
    assert [out["third"] for out in results] == [other, member, member]
    assert [out.get("interrupted") for out in results] == [1, None, 1]
    assert [out["kept id"] for out in results] == [None, "3", "3"]
    assert {out["fresh id"] for out in results} == {"4"}
    assert [out["late"] for out in results] == [
        [(None, "kept"), ("4", "fresh")],
        [("3", "kept"), ("4", "fresh")],
        [("3", "kept"), ("4", "fresh")],
    ]
    assert {out["count"] for out in results} == {5}


def test_nothing_is_recorded_after_freezing() -> None:
    journal = Journal(record=True)
    entry = journal.begin("0", "allreduce", [torch.ones(2)])
    assert entry is not None
    entry.capture(None)
    frozen = journal.freeze()
    assert journal.begin("0", "allreduce", [torch.ones(2)]) is None
    assert journal.freeze() == frozen
    operations = msgpack.unpackb(frozen)["ops"]
    assert [row[:4] for row in operations] == [["0", 0, "allreduce", [[[2], "float32"]]]]
    assert operations[0][4] == [torch.ones(2).numpy().tobytes()]


def test_what_a_newcomer_leaves_out_is_not_recorded_and_not_counted() -> None:
    recording = Journal(record=True)
    with recording.paused():
        assert recording.begin("g", "allreduce", [torch.zeros(2)]) is None
        assert recording.store_result("get", "key", b"x") == b"x"
    entry = recording.begin("g", "barrier", [])
    assert entry is not None and entry.seq == 0
    replaying = Journal(record=False, data=recording.freeze())
    assert replaying.begin("g", "barrier", []) is not None
    assert replaying.stored("get", "key") == (False, None)


def test_what_a_newcomer_passes_over_is_in_no_journal() -> None:
    journal = Journal(record=True)
    journal.begin("0", "allreduce", [torch.zeros(1)])
    replaying = Journal(record=False, data=journal.freeze())
    replaying.passed()
    assert not replaying.replaying and replaying.begin("0", "broadcast", [torch.zeros(5)]) is None
    assert not replaying.frozen and replaying.freeze() == journal.freeze()


def test_limit_is_per_tensor() -> None:
    journal = Journal(record=True)
    entry = journal.begin("0", "allgather", [torch.zeros(LIMIT // 4), torch.zeros(LIMIT // 4 + 1)])
    assert entry is not None
    entry.capture(None)
    kept, left_out = msgpack.unpackb(journal.freeze())["ops"][0][4]
    assert len(kept) == LIMIT
    assert left_out is None


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", msgpack.packb({"format": 99}), msgpack.packb({"format": 2, "ops": [[1]]})]
)
def test_unreadable_journal(data: bytes) -> None:
    with pytest.raises(JournalMismatch):
        Journal(record=False, data=data)


def replayed(recorded: torch.Tensor, own: torch.Tensor, state: list[torch.Tensor]) -> torch.Tensor:
    """What a replacement has, whose own tensor is `own`, where the job had `recorded`. state: of the job's rank."""
    journal = Journal(record=True)
    entry = journal.begin("0", "broadcast", [recorded])
    assert entry is not None
    entry.capture(None)
    again = Journal(record=False, data=journal.freeze(state))
    found = again.begin("0", "broadcast", [own])
    assert found is not None
    again.replay(found, [own], DoneWork([own]))
    return own


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_large_data_come_back(dtype: torch.dtype) -> None:
    wanted = torch.arange(100_000).to(dtype)
    assert torch.equal(replayed(wanted, torch.zeros_like(wanted), [torch.zeros(3)]), wanted)


def test_large_state_is_left_to_the_restore() -> None:
    weight = torch.rand(100_000)
    zeros = torch.zeros(100_000)
    assert torch.equal(replayed(weight, zeros.clone(), [weight]), zeros)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):  # a framework has moved it
        assert torch.equal(replayed(weight, zeros.clone(), [torch.rand(3), weight.to(dtype)]), zeros)


def test_large_data_with_the_shape_of_a_weight_come_back() -> None:
    table, weight = torch.rand(100, 1000), torch.rand(100, 1000)
    assert torch.equal(replayed(table, torch.zeros_like(table), [weight, weight.bfloat16()]), table)


def test_data_for_which_there_is_no_room_are_refused_if_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ff_core.comm.large.ROOM", 1000)
    wanted = torch.arange(100_000)
    replayed(wanted, wanted.clone(), [])
    with pytest.raises(JournalMismatch, match=r"too large to be kept .* through a file"):
        replayed(wanted, torch.zeros_like(wanted), [])


def called_through(files: list[str], function: Any) -> Any:
    """`function` under calls from `files`: each calls the next one."""
    for file in reversed(files):
        names = {"call_on": function}
        exec(compile("def call(*given):\n    return call_on(*given)", f"/lib/{file}", "exec"), names)
        function = names["call"]
    return function


@pytest.mark.parametrize(
    ("files", "asks"),
    [
        (["deepspeed/runtime/engine.py", "deepspeed/comm/comm.py"], "deepspeed/runtime/engine.py"),
        (["train.py", "deepspeed/comm/comm.py"], None),
        (["train.py", "accelerate/utils/operations.py"], None),
    ],
)
def test_who_asks_for_a_collective(files: list[str], asks: str | None) -> None:
    found = called_through(files, large._asking_framework)()
    assert found is None if asks is None else found.endswith(asks)


@pytest.mark.parametrize(
    ("file", "is_state"),
    [
        ("deepspeed/runtime/zero/partition_parameters.py", True),
        ("deepspeed/runtime/engine.py", False),
        ("train.py", False),
    ],
)
def test_weights_that_zero3_sends_as_bytes_are_state(file: str, is_state: bool) -> None:
    """Its broadcast of a parameter that it is about to partition: there is nothing of that shape in the state."""
    room = large.Room()
    parameter = torch.zeros(100_000, dtype=torch.uint8)
    found = called_through([file, "deepspeed/comm/comm.py"], large.Large)(0, parameter, b"", room)
    assert found.is_state(large.State([torch.zeros(3)])) is is_state
    assert room.left == large.ROOM - (0 if is_state else 100_000)
