"""Simulated jobs in which something was found once. What it was is said beside each."""

from __future__ import annotations

import pytest

from tests.controller.simulation import Options, simulate

FOUND = {
    # The controller died when it had told a node that just had come, and no other one, of the newest record. Its
    # successor does not know this node, and refuses it.
    "a node that the next controller does not know": (
        300,
        Options(
            nproc=2, spares=1, replicas=2, interval=3, commit="relaxed", iterations=7, has_constant=True,
            same_machine=False, faults=3, kinds=("controller", "node"), standbys=1, loops=3,
        ),
    ),
    "the same, two controllers": (
        1110972147,
        Options(
            nproc=2, spares=2, interval=0, commit="relaxed", iterations=9, has_constant=True, same_machine=False,
            max_restarts=1, faults=2, kinds=("controller",), standbys=2, returns=True, loops=2,
        ),
    ),
    # An agent was just dropping its record, because the script starts again.
    "a record that is being dropped": (
        2397242562,
        Options(
            nodes=4, nproc=3, replicas=0, interval=2, iterations=2, has_local=True, max_restarts=1, faults=3,
            kinds=("controller", "partition"), standbys=1,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name: str) -> None:
    seed, options = FOUND[name]
    world = simulate(seed, options)
    assert world.result is not None and world.restarts + world.takeovers, "it is still the job in which that happens"
