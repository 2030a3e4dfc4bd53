"""Scalars that are still on their way from a device: nothing waits for them, and their version is not sealed yet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ff_core.contract.stamps import version_of
from ff_core.errors import FailoverInterrupt
from ff_core.worker import scalars
from tests.worker.one_rank import OneRank
from tests.worker.test_contract import Trainer


class Device:
    """Decides when scalars arrive. waited: somebody did not go on before they had."""

    def __init__(self) -> None:
        self.here = threading.Event()
        self.here.set()
        self.waited = False


class Late:
    """An encoding whose tensors lie on the device."""

    def __init__(self, encoding: Any, device: Device) -> None:
        self._encoding, self._device = encoding, device

    def arrived(self) -> bool:
        return self._device.here.is_set()

    def bytes(self) -> bytes:
        self._device.waited |= not self._device.here.is_set()
        self._device.here.set()  # it runs while it is waited for
        packed: bytes = self._encoding.bytes()
        return packed


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OneRank, Trainer, Device]]:
    device, take = Device(), scalars.take
    monkeypatch.setattr(scalars, "take", lambda adapter, registry: Late(take(adapter, registry), device))
    job, trainer = OneRank(), Trainer()
    job.session.attach(trainer)
    job.session.start_training()
    for _ in range(2):
        trainer.iterate(job.session)
    device.waited = False
    device.here.clear()
    trainer.iterate(job.session)
    yield job, trainer, device
    job.close()


def sealed(job: OneRank) -> int:
    return version_of(job.session.parts.page.load("sealed"))


def test_a_seal_does_not_wait(made: tuple[OneRank, Trainer, Device]) -> None:
    job, _, device = made
    assert job.session.version == 3 and sealed(job) == 2 and not device.waited
    job.session.given("the next batch")
    job.session.seal()
    assert sealed(job) == 2 and not device.waited


@pytest.mark.parametrize("call", ["check", "given", "inject"])
def test_sealed_when_they_have_arrived(made: tuple[OneRank, Trainer, Device], call: str) -> None:
    job, _, device = made
    device.here.set()
    assert sealed(job) == 2
    arguments = {"check": (), "given": ("a batch",), "inject": ("forward",)}
    getattr(job.session, call)(*arguments[call])
    assert sealed(job) == 3 and not device.waited


def test_the_next_step_waits_for_them(made: tuple[OneRank, Trainer, Device]) -> None:
    job, trainer, device = made
    trainer.iterate(job.session)
    assert device.waited and sealed(job) == 4 and trainer.is_at(4)


def test_the_end_waits_for_them(made: tuple[OneRank, Trainer, Device]) -> None:
    job, _, device = made
    job.session.finish()
    assert device.waited and sealed(job) == 3
    while job.w != 3:
        time.sleep(0.01)


def test_a_death_before_they_arrive_finds_the_version_before(made: tuple[OneRank, Trainer, Device]) -> None:
    """They may come behind a collective of the dead, and then be anything."""
    job, trainer, device = made
    job.lose()
    device.here.set()
    assert job.session.recover(FailoverInterrupt(1)) == 2 and trainer.is_at(2)
    trainer.iterate(job.session)
    assert sealed(job) == 3 and trainer.is_at(3)


def test_a_death_after_they_arrived_keeps_the_version(made: tuple[OneRank, Trainer, Device]) -> None:
    job, trainer, device = made
    device.here.set()
    job.session.check()
    job.lose()
    assert job.session.recover(FailoverInterrupt(1)) == 3 and trainer.is_at(3)
