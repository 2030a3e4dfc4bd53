"""What a halted worker says about its live tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import SCRIPT, Settings
from ff_core.contract.job import JobSpec
from ff_core.copy.page import StatusPage
from ff_core.errors import ConfigError
from ff_core.worker.parts import WorkerParts
from ff_core.worker.session import Session


class Engine:
    """Of a replicator: `version` is in flight, its step still queued on the device, until the cancel forgets both."""

    def __init__(self, version: int) -> None:
        self.pending: int | None = version
        self.asked: list[str] = []

    def step_ended(self, version: int) -> bool:
        return version != self.pending

    def wait_idle(self) -> None:
        self.asked.append("idle")

    def cancel(self) -> None:
        self.asked.append("cancel")
        self.pending = None


@pytest.fixture
def made() -> tuple[Session, list[tuple[int, bool]]]:
    """A session at version 3, sealed; and what it has said."""
    said: list[tuple[int, bool]] = []
    link: Any = SimpleNamespace(send=lambda name, **fields: said.append((fields["version"], fields["sealed"])))
    role = {
        "t": "role", "rank": 0, "world_size": 2, "epoch": 0, "newcomer": False, "secret": b"", "injections": [],
        "entrypoint": ["train.py"], "job": JobSpec(["train.py"], 1, 2, "127.0.0.1", 1).to_wire(),
    }  # fmt: skip
    session = Session(WorkerParts.for_role(link, role, StatusPage.create(), -1), role)
    session.parts.fence.resume(3, lambda version: None)
    return session, said


def test_whole_tensors_are_reported_again(made: tuple[Session, list[tuple[int, bool]]]) -> None:
    session, said = made
    session.halt(1)
    session.halt(2)
    assert said == [(3, True), (3, True)]


def test_a_step_that_a_halt_found_unfinished_stays_so(made: tuple[Session, list[tuple[int, bool]]]) -> None:
    session, said = made
    engine = Engine(3)
    inputs = SimpleNamespace(halting=lambda epoch: None)
    training = SimpleNamespace(replicator=engine, joined=False, can_supply=lambda version: True, inputs=inputs)
    session._training = training  # type: ignore[assignment]
    session.halt(1)
    session.halt(2)
    assert said == [(-1, False), (-1, False)] and session.parts.page.load("live") == 0
    assert engine.asked == ["idle", "cancel"] * 2  # an abort that frees nothing must show before the rank has halted
    session.parts.fence.begin_epoch(2)
    session.parts.fence.resume(2, lambda version: None)
    session.halt(3)
    assert said[-1] == (2, True)


def launched_with(settings: Settings, *, newcomer: bool) -> Session:
    job = {**JobSpec(["train.py"], 1, 2, "127.0.0.1", 1).to_wire(), "config": settings.to_wire()}
    role = {
        "rank": 1, "world_size": 2, "secret": b"a secret of ours", "newcomer": newcomer, "epoch": 0, "injections": [],
        "entrypoint": ["train.py"], "job": job,
    }  # fmt: skip
    parts = WorkerParts.for_role(SimpleNamespace(), role, StatusPage.create(), -1)  # type: ignore[arg-type]
    return Session(parts, role, None)


def test_the_script_s_block_joins_what_the_launcher_knew() -> None:
    made = launched_with(Settings.given(FailoverConfig(interval=3), "ds.json"), newcomer=False)
    made.configure(FailoverConfig(enabled=True, halt_timeout_s=3.0, heartbeat_interval_s=1.0, spares=2))
    wanted = FailoverConfig(
        enabled=True, interval=3, halt_timeout_s=3.0, heartbeat_interval_s=1.0, spares=2, secret="a secret of ours"
    )
    assert made.config == wanted


def test_a_block_that_comes_too_late_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"secret = \(not shown\), but the job was started with a value of the launch"
    ):
        launched_with(Settings(), newcomer=False).configure(FailoverConfig(secret="a secret of mine"))
    launched_with(Settings(), newcomer=False).configure(FailoverConfig(secret="a secret of ours"))


def test_a_replacement_with_another_block_is_refused() -> None:
    trained = Settings.given(FailoverConfig(interval=3), SCRIPT)
    launched_with(trained, newcomer=True).configure(FailoverConfig(enabled=False, interval=3))
    with pytest.raises(ConfigError, match=r"interval = 4, but the job trains with 3"):
        launched_with(trained, newcomer=True).configure(FailoverConfig(interval=4))
