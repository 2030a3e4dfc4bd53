"""Every `Era` and every `CommHost` behaves alike: the real ones, and those that stand in for them in tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm.cut import Latch
from ff_core.comm.era import Era
from ff_core.comm.host import ACTIVITY_COLLECTIVE, CommHost
from ff_core.comm.registry import GroupRegistry
from ff_core.contract.job import JobSpec
from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverInterrupt
from ff_core.worker.host import WorkerHost
from ff_core.worker.parts import WorkerParts
from tests.comm.harness import Host
from tests.comm.standins import StandinEra


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


# ---- eras ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[GroupRegistry, StandinEra])
def era(request: pytest.FixtureRequest) -> Any:
    host = Host(0, 0, 0.0)
    return GroupRegistry(host, solo=False, replay=None) if request.param is GroupRegistry else StandinEra(host)


def interrupts(call: Callable[[], Any]) -> int:
    """The epoch of the FailoverInterrupt that `call` raises."""
    with pytest.raises(FailoverInterrupt) as caught:
        call()
    return caught.value.epoch


def test_an_era_has_all_that_is_asked(era: Any) -> None:
    assert len(members(Era)) > 8 and [name for name in members(Era) if not hasattr(era, name)] == []
    assert (era.solo, era.over, era.noted, era.epoch()) == (False, False, None, 0)


def test_what_an_error_means(era: Any) -> None:
    era.note_failure(RuntimeError("seen by C++ only"))
    assert str(era.noted) == "seen by C++ only"
    era.failed(ValueError("the caller's own"), 0)
    era.failed(NotImplementedError("gloo has no such operation"), 0)
    assert era.host.hints == [] and era.noted is not None, "no hint of a death"
    era.failed(RuntimeError("connection closed"), 0)
    (hint,) = era.host.hints
    assert hint.endswith("connection closed") and era.noted is None
    assert interrupts(lambda: era.failed(RuntimeError("of a generation that is gone"), -1)) == 0
    era.failed(RuntimeError("of a group that is made"), None)


def test_a_halt_ends_an_era(era: Any) -> None:
    latch = Latch(era.cut, torch.futures.Future())
    assert not latch.future.done()
    era.halt(3)
    assert era.over and era.interrupt().epoch == 3
    latch.future.wait()  # opened by the cut
    assert interrupts(lambda: era.failed(RuntimeError("connection closed"), 0)) == 3
    assert interrupts(lambda: era.failed(ValueError("anything"), None)) == 3
    assert era.host.hints == [], "what it means is known"


# ---- hosts ---------------------------------------------------------------------------------------------------------


class Real:
    """A worker's host, whose agent hears nothing."""

    def __init__(self, port: int) -> None:
        self._page, self._bell, self.hints = StatusPage.create(), os.eventfd(0), list[str]()
        role = {
            "rank": 0, "world_size": 1, "epoch": 0, "secret": b"", "injections": [],
            "job": JobSpec(["train.py"], 1, 1, "127.0.0.1", port).to_wire(),
        }  # fmt: skip
        link: Any = SimpleNamespace(send=self._heard)
        self.parts = WorkerParts.for_role(link, role, self._page, self._bell)
        self.patience_s = 0.0
        asked: Any = SimpleNamespace(verdict_timeout_s=lambda: self.patience_s, collective_begins=lambda: None)
        self.host: CommHost = WorkerHost(self.parts, asked)

    def _heard(self, name: str, rank: int, text: str, site: str) -> None:
        self.hints.append(f"{site}: {text}")

    def halt(self, epoch: int) -> None:
        self._page.store("halt_epoch", epoch)
        self.parts.fence.halt(epoch, lambda: None)

    def close(self) -> None:
        self._page.close()
        os.close(self._bell)


class Fake:
    def __init__(self, port: int) -> None:
        self.fake = Host(port, 0, 0.0)
        self.host: CommHost = self.fake
        self.hints = self.fake.hints

    @property
    def patience_s(self) -> float:
        return self.fake.verdict_s

    @patience_s.setter
    def patience_s(self, value: float) -> None:
        self.fake.verdict_s = value

    def halt(self, epoch: int) -> None:
        self.fake.announced = epoch

    def close(self) -> None:
        pass


@pytest.fixture(params=[Real, Fake])
def hosting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    made = request.param(store.port)
    yield made
    made.close()


def test_a_host_has_all_that_is_asked(hosting: Any) -> None:
    host = hosting.host
    assert len(members(CommHost)) > 6 and [name for name in members(CommHost) if not hasattr(host, name)] == []
    assert (host.epoch, host.halted(), host.collective_begins()) == (0, None, None)
    host.enter(ACTIVITY_COLLECTIVE)
    host.leave()


def test_each_connection_to_the_store_is_a_new_one(hosting: Any) -> None:
    one, other = (hosting.host.connect_store(20.0) for _ in range(2))
    one.set("key", "value")
    assert one is not other and other.get("key") == b"value"


def test_an_error_without_a_halt_is_a_hint(hosting: Any) -> None:
    hosting.host.on_failure(RuntimeError("connection closed"), "all_reduce")
    assert hosting.hints == ["all_reduce: connection closed"]


def test_a_halt_that_comes_while_it_is_waited_for(hosting: Any) -> None:
    hosting.patience_s = 60.0
    timer = threading.Timer(0.1, hosting.halt, (2,))
    timer.start()
    try:
        assert interrupts(lambda: hosting.host.on_failure(RuntimeError("connection closed"), "all_reduce")) == 2
    finally:
        timer.join()
    assert hosting.host.halted() == 2
