"""The order of a recovery's steps, where it matters."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverInterrupt
from ff_core.state import codec
from ff_core.worker import recovery as recovery_module
from ff_core.worker.fence import Fence
from ff_core.worker.recovery import Recovery


class Owner:
    """A survivor of two ranks whose verdict of epoch 1 is there: back to version 3, from its own slot."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.live_while_waiting = -1
        self.halt_while_waiting = False  # for the device: another rank has died
        self.rank, self.epoch, self.is_newcomer, self.protection = 0, 0, False, ""
        self.page = StatusPage.create()
        self.fence = Fence(self.page, 0)
        self.fence.halt(1, lambda: None)
        blob = codec.encode({"adapter": {}, "registered": {}, "rng": {}, "late_groups": []}, name="scalars")

        def wait_rebuilt() -> None:
            self.done.append("waited")
            self.live_while_waiting = self.page.load("live")
            if self.halt_while_waiting:
                self.fence.halt(2, lambda: None)

        self.replicator = SimpleNamespace(
            restore=lambda epoch, version: (blob, 0),
            keep_blob=lambda version, blob: None,
            blob=lambda version: blob,
            wait_rebuilt=wait_rebuilt,
            connect=lambda holders, epoch: None,
            recommit=lambda version: None,
        )
        self.registry = SimpleNamespace(
            drop=lambda: None, make_late_groups=lambda groups: None, regroup=lambda epoch: None
        )
        self.adapter = SimpleNamespace(
            rebuild=lambda source, newcomers, restored: self.done.append("rebuilt"),
            load_scalars=lambda saved: None,
        )
        self.link = SimpleNamespace(send=lambda name, **fields: self.done.append(name))
        self.config = SimpleNamespace(verdict_timeout_s=1.0, join_timeout_s=1.0)
        self.inbox = SimpleNamespace(take=self._take)

    def check(self) -> None:
        self.fence.check()

    def _take(self, name: str, accept: Any, check: Any, timeout_s: float | None = None) -> tuple[dict[str, Any], Any]:
        verdict = {
            "epoch": 1, "version": 3, "source_rank": 1, "newcomers": [], "restored": [0], "coverage": "",
            "holders": [], "source": "slot", "filled": False,
        }  # fmt: skip
        return verdict, [os.dup(2)] if name == "go_on" else []


@pytest.fixture(autouse=True)
def no_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module.rng, "restore", lambda saved: None)


def test_a_rank_is_whole_only_when_the_device_has_run_the_rebuild() -> None:
    owner = Owner()
    assert Recovery(owner)._once() == 3  # type: ignore[arg-type]
    assert owner.done == ["ready", "rebuilt", "waited", "resumed"]
    assert owner.live_while_waiting == 0 and owner.page.load("live") != 0


def test_a_death_meanwhile_leaves_it_torn() -> None:
    owner = Owner()
    owner.halt_while_waiting = True
    with pytest.raises(FailoverInterrupt):
        Recovery(owner)._once()  # type: ignore[arg-type]
    assert "resumed" not in owner.done
    assert owner.fence.halt(2, lambda: None) == (-1, False)
