"""Why a rank's state lies in host memory four times: docs/protocol.md, section 5. Less loses what was safe."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from ff_core.agent.replica_store import ReplicaStore
from ff_core.worker.replicator import Replicator
from tests.controller.sim_memory import Violation
from tests.controller.simulation import Options, World, simulate

OPTIONS = Options(nodes=3, nproc=1, faults=1, kinds=("node",), iterations=6)
_allocate = ReplicaStore.allocate
_slot_for = Replicator._slot_for


def one_slot(kind: str) -> Any:
    """In place of ReplicaStore.allocate. kind: "own" or "replicas", whose arenas have one slot only."""

    def allocate(self: ReplicaStore, *arguments: Any) -> None:
        _allocate(self, *arguments)
        for arena in getattr(self, kind).values():
            del arena.slots[1:]

    return allocate


def the_only_one(self: Replicator, version: int) -> int:
    return _slot_for(self, version) if len(self.arena.slot_infos()) > 1 else 0


@pytest.mark.parametrize("kind", ["own", "replicas"])
def test_one_slot_instead_of_two_loses_what_was_safe(kind: str) -> None:
    """The death of one node is enough."""
    for seed in range(60):
        simulate(seed, OPTIONS)
    with (
        mock.patch.object(ReplicaStore, "allocate", one_slot(kind)),
        mock.patch.object(Replicator, "_slot_for", the_only_one),
        mock.patch.object(World, "overwritten", lambda *_: None),  # the rule is what is in question
        pytest.raises(Violation, match=r"was safe and only \['node \d'\] was lost"),
    ):
        for seed in range(60):
            simulate(seed, OPTIONS)
