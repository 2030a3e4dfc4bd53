"""The order of a recovery's steps, where it matters."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.comm.whole import WholeGroup
from ff_core.config.schema import FailoverConfig
from ff_core.contract.schedule import CopySchedule
from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverInterrupt
from ff_core.state import codec, switched, variables
from ff_core.worker import replicator, scalars
from ff_core.worker.fence import Fence
from ff_core.worker.parts import WorkerParts
from ff_core.worker.recovery import Recovery
from ff_core.worker.replicator import Replicator
from ff_core.worker.verdicts import Verdicts


class Rank:
    """A survivor of two ranks whose verdict of epoch 1 is there: back to version 3, from its own slot."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.live_while_waiting = -1
        self.halt_while_waiting = False  # for the device: another rank has died
        self.page = StatusPage.create()
        self.fence = Fence(self.page, 0)
        self.fence.halt(1, lambda: None)
        parts_of_it: dict[str, Any] = {"adapter": {}, "registered": {}, "rng": {}, "late_groups": []}
        of_script = {"switched": switched.collect(), "variables": variables.of_process.save()}
        blob = codec.encode({**parts_of_it, **of_script}, name="scalars")
        parts = WorkerParts(
            rank=0,
            world_size=2,
            ranks_per_node=1,
            may_restart=False,
            secret=b"",
            link=SimpleNamespace(send=lambda name, **fields: self.done.append(name)),  # type: ignore[arg-type]
            inbox=SimpleNamespace(take=self._take),  # type: ignore[arg-type]
            page=self.page,
            notify_fd=-1,
            fence=self.fence,
            faults=SimpleNamespace(),  # type: ignore[arg-type]
        )
        registry = SimpleNamespace(
            wait_quiet=lambda epoch: self.done.append(f"quiet {epoch}"), drop=lambda: None,
            make_late_groups=lambda groups: None, regroup=lambda epoch: None, whole=WholeGroup(),
        )  # fmt: skip
        adapter = SimpleNamespace(
            drop_iteration=lambda: self.done.append("dropped"),
            rebuild=lambda source, newcomers, restored: self.done.append("rebuilt"),
            load_scalars=lambda saved: None,
            repeats_script=True,
        )
        replicator = SimpleNamespace(
            restore=lambda epoch, version: (blob, 0),
            keep_blob=lambda version, blob: None,
            blob=lambda version: blob,
            wait_rebuilt=self._wait_rebuilt,
            connect=lambda holders, epoch: None,
            recommit=lambda version: None,
        )
        config = FailoverConfig.from_dict({})
        self.recovery = Recovery(
            parts,
            Verdicts(parts),
            config,
            registry,
            adapter,
            replicator,  # type: ignore[arg-type]
            CopySchedule(),
        )

    def _wait_rebuilt(self) -> None:
        self.done.append("waited")
        self.live_while_waiting = self.page.load("live")
        if self.halt_while_waiting:
            self.fence.halt(2, lambda: None)

    def _take(self, name: str, accept: Any, check: Any, timeout_s: float | None = None) -> tuple[dict[str, Any], Any]:
        verdict = {
            "epoch": 1, "version": 3, "source_rank": 1, "newcomers": [], "restored": [0], "coverage": "",
            "holders": [], "source": "slot", "filled": False, "interval": 1, "resumes": False,
        }  # fmt: skip
        return verdict, [os.dup(2)] if name == "go_on" else []


@pytest.fixture(autouse=True)
def no_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars.rng, "restore", lambda saved: None)


def test_a_rank_is_whole_only_when_the_device_has_run_the_rebuild() -> None:
    rank = Rank()
    assert rank.recovery._once(newcomer=False, verdict=None) == 3
    assert rank.done == ["ready", "rebuilt", "waited", "resumed"]
    assert rank.live_while_waiting == 0 and rank.page.load("live") != 0


def test_nothing_is_put_in_place_while_old_collectives_may_write() -> None:
    rank = Rank()
    assert rank.recovery.survive() == 3
    assert rank.done == ["quiet 1", "dropped", "ready", "rebuilt", "waited", "resumed"]


def test_a_death_meanwhile_leaves_it_torn() -> None:
    rank = Rank()
    rank.halt_while_waiting = True
    with pytest.raises(FailoverInterrupt):
        rank.recovery._once(newcomer=False, verdict=None)
    assert "resumed" not in rank.done
    assert rank.fence.halt(2, lambda: None) == (-1, False)


def test_a_broken_device_does_not_keep_a_halt_from_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(replicator, "wait_until_idle", broken)
    made = object.__new__(Replicator)
    made._device = torch.device("cuda", 0)
    made.wait_idle()
