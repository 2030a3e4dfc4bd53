"""What a halted worker says about its live tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import SCRIPT, Settings
from ff_core.copy.page import StatusPage
from ff_core.errors import ConfigError
from ff_core.worker.fence import Fence
from ff_core.worker.session import Failover


class Engine:
    """Of a replicator: `version` is in flight, its step still queued on the device, until the cancel forgets both."""

    def __init__(self, version: int) -> None:
        self.pending: int | None = version

    def step_ended(self, version: int) -> bool:
        return version != self.pending

    def cancel(self) -> None:
        self.pending = None


@pytest.fixture
def failover() -> tuple[Failover, list[tuple[int, bool]]]:
    """At version 3, sealed; and what it has said."""
    said: list[tuple[int, bool]] = []
    made: Any = object.__new__(Failover)
    made.rank, made.is_newcomer, made.registry, made.replicator = 0, False, None, None
    made.page = StatusPage.create()
    made.fence = Fence(made.page, 0)
    made.fence.resume(3, lambda version: None)
    made.inbox = SimpleNamespace(poke=lambda: None)
    made.link = SimpleNamespace(send=lambda name, **fields: said.append((fields["version"], fields["sealed"])))
    return made, said


def test_whole_tensors_are_reported_again(failover: tuple[Failover, list[tuple[int, bool]]]) -> None:
    made, said = failover
    made.halt(1)
    made.halt(2)
    assert said == [(3, True), (3, True)]


def test_a_step_that_a_halt_found_unfinished_stays_so(failover: tuple[Failover, list[tuple[int, bool]]]) -> None:
    made, said = failover
    made.replicator = Engine(3)  # type: ignore[assignment]
    made.halt(1)
    made.halt(2)
    assert said == [(-1, False), (-1, False)] and made.page.load("live") == 0
    made.fence.begin_epoch(2)
    made.fence.resume(2, lambda version: None)
    made.halt(3)
    assert said[-1] == (2, True)


def session(launched: Settings, *, newcomer: bool) -> Failover:
    role = {
        "rank": 1, "world_size": 2, "secret": b"a secret of ours", "newcomer": newcomer, "epoch": 0, "injections": [],
        "entrypoint": ["train.py"], "job": {"nproc_per_node": 1, "config": launched.to_wire()},
    }  # fmt: skip
    return Failover(SimpleNamespace(), role, StatusPage.create(), -1)  # type: ignore[arg-type]


def test_the_script_s_block_joins_what_the_launcher_knew() -> None:
    made = session(Settings.given(FailoverConfig(interval=3), "ds.json"), newcomer=False)
    made.configure(FailoverConfig(enabled=True, halt_timeout_s=3.0, heartbeat_interval_s=1.0, spares=2))
    wanted = FailoverConfig(
        enabled=True, interval=3, halt_timeout_s=3.0, heartbeat_interval_s=1.0, spares=2, secret="a secret of ours"
    )
    assert made.config == wanted


def test_a_block_that_comes_too_late_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"secret = \(not shown\), but the job was started with a value of the launch"
    ):
        session(Settings(), newcomer=False).configure(FailoverConfig(secret="a secret of mine"))
    session(Settings(), newcomer=False).configure(FailoverConfig(secret="a secret of ours"))


def test_a_replacement_with_another_block_is_refused() -> None:
    trained = Settings.given(FailoverConfig(interval=3), SCRIPT)
    session(trained, newcomer=True).configure(FailoverConfig(enabled=False, interval=3))
    with pytest.raises(ConfigError, match=r"interval = 4, but the job trains with 3"):
        session(trained, newcomer=True).configure(FailoverConfig(interval=4))
