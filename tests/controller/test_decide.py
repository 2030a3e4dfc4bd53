"""The choice of v*: the newest common version, of the right epoch, from sources that exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_core.contract.slot_report import SlotReport
from ff_core.controller.decide import Decision, Impossible, decide

WORLD, EPOCH = 3, 2
NODE_OF = {0: 0, 1: 1, 2: 2}


def own(rank: int, version: int, *, epoch: int = EPOCH, node: int | None = None, full: bool = True) -> SlotReport:
    return SlotReport(rank, rank if node is None else node, "own", epoch, version, full)


def replica(rank: int, version: int, *, epoch: int = EPOCH, node: int = 9) -> SlotReport:
    return SlotReport(rank, node, "replica", epoch, version, True)  # full of what its own arena holds


def choose(
    slots: list[SlotReport],
    live: dict[int, int] | None = None,
    survivors: set[int] | None = None,
    *,
    has_local: bool = False,
    has_constant: bool = False,
    groups: tuple[set[int], ...] = (),
) -> Decision | Impossible:
    live = live or {}
    return decide(
        world_size=WORLD,
        epoch=EPOCH,
        live=live,
        survivors=set(live) if survivors is None else survivors,
        slots=slots,
        has_local=has_local,
        has_constant=has_constant,
        node_of=NODE_OF,
        groups=groups,
    )


reports = st.builds(
    SlotReport,
    rank=st.integers(0, WORLD),
    node=st.integers(0, 3),
    kind=st.sampled_from(["own", "replica"]),
    epoch=st.integers(EPOCH - 1, EPOCH + 1),
    version=st.integers(0, 3),
    full=st.booleans(),
)


@given(
    slots=st.lists(reports, max_size=14),
    live=st.dictionaries(st.integers(0, WORLD - 1), st.integers(0, 3)),
    survivors=st.sets(st.integers(0, WORLD - 1)),
    has_local=st.booleans(),
    has_constant=st.booleans(),
)
def test_newest_common_version_from_sources_that_exist(
    slots: list[SlotReport], live: dict[int, int], survivors: set[int], has_local: bool, has_constant: bool
) -> None:
    live = {rank: version for rank, version in live.items() if rank in survivors}
    found = choose(slots, live, survivors, has_local=has_local, has_constant=has_constant)
    counted = [s for s in slots if s.epoch == EPOCH]
    supply = {
        r: {s.version for s in counted if s.rank == r} | {v for q, v in live.items() if q == r} for r in range(WORLD)
    }
    common = set.intersection(*supply.values())

    def possible(version: int) -> bool:
        """Whether redundant state can be had at `version`: a survivor that gets all of it, or everybody's own slot
        has it."""
        full = {
            r
            for r in range(WORLD)
            if live.get(r) == version
            or any(
                (s.rank, s.version, s.full) == (r, version, True)
                and (not has_local or (s.kind, s.node) == ("own", NODE_OF[r]))
                for s in counted
            )
        }
        return bool(full & survivors) or (not has_constant and (not has_local or len(full) == WORLD))

    best = max((version for version in common if possible(version)), default=None)
    if isinstance(found, Impossible):
        assert best is None
        assert found.lost == {rank: sorted(versions) for rank, versions in supply.items()}
        return
    assert found.version == best
    assert set(found.sources) == set(range(WORLD))
    for rank, source in found.sources.items():
        if source.kind == "live":
            assert live[rank] == found.version
            continue
        assert live.get(rank) != found.version
        match = [
            s for s in counted if (s.rank, s.node, s.kind, s.version) == (rank, source.node, source.kind, found.version)
        ]
        assert match, "a source that nobody reported"
        if source.full:
            assert any(s.full for s in match)
            assert not has_local or (source.kind, source.node) == ("own", NODE_OF[rank])
    if found.source_rank is not None:
        assert found.source_rank in survivors and found.sources[found.source_rank].full
    else:
        assert not has_constant


def test_versions_that_one_rank_lacks_do_not_count() -> None:
    found = choose([own(0, 4), own(0, 5), own(1, 4), own(1, 5), own(2, 4)])
    assert isinstance(found, Decision) and found.version == 4


def test_slots_of_another_epoch_do_not_count() -> None:
    found = choose([own(0, 5), own(1, 5), own(2, 5, epoch=EPOCH - 1), replica(2, 5, epoch=EPOCH + 1)])
    assert isinstance(found, Impossible) and found.lost == {0: [5], 1: [5], 2: []}


def test_live_before_own_slot_before_replica() -> None:
    slots = [own(0, 5), replica(0, 5), own(1, 5), replica(1, 5), replica(2, 5, node=1), replica(2, 5, node=0)]
    found = choose(slots, {0: 5})
    assert isinstance(found, Decision)
    assert [(found.sources[r].kind, found.sources[r].node) for r in range(3)] == [
        ("live", 0),
        ("own", 1),
        ("replica", 0),
    ]
    assert found.source_rank == 0


def test_own_slot_at_home_before_a_retired_one_elsewhere() -> None:
    found = choose([own(0, 5), own(1, 5), own(2, 5, node=0), own(2, 5, node=2)])
    assert isinstance(found, Decision) and found.sources[2].node == 2


def test_a_replica_is_not_full_when_ranks_have_local_state() -> None:
    slots = [own(0, 5), own(1, 5), replica(2, 5)]
    found = choose(slots, survivors={2, 1}, has_local=True)
    assert isinstance(found, Decision) and not found.sources[2].full and found.source_rank == 1
    # without local state it lacks nothing
    found = choose(slots, survivors={2}, has_local=False)
    assert isinstance(found, Decision) and found.sources[2].full and found.source_rank == 2


def test_what_is_sent_from_an_own_slot_elsewhere_lacks_the_local_state() -> None:
    """All processes are dead, and rank 2 plays on another node from now on: nobody could give it that state."""
    slots = [own(0, 5), own(1, 5), own(2, 5, node=0)]
    found = choose(slots, has_local=True)
    assert isinstance(found, Impossible) and "replicas do not carry it" in found.reason
    found = choose(slots, survivors={0}, has_local=True)
    assert isinstance(found, Decision) and found.source_rank == 0 and not found.sources[2].full
    found = choose(slots)
    assert isinstance(found, Decision) and found.sources[2].full


def test_older_version_when_nobody_can_broadcast_the_newest() -> None:
    slots = [replica(r, 5) for r in range(WORLD)] + [own(r, 4) for r in range(WORLD)]
    found = choose(slots, has_local=True)
    assert isinstance(found, Decision) and found.version == 4 and found.source_rank is None


def test_frozen_state_needs_a_survivor() -> None:
    slots = [own(r, 5) for r in range(WORLD)]
    found = choose(slots, has_constant=True)
    assert isinstance(found, Impossible) and "frozen state" in found.reason
    found = choose(slots, survivors={1}, has_constant=True)
    assert isinstance(found, Decision) and found.source_rank == 1


def test_every_redundancy_group_needs_a_member_that_has_everything() -> None:
    slots = [own(0, 5), own(1, 5), replica(2, 5)]
    found = choose(slots, survivors={0, 1}, has_local=True, groups=({0}, {1, 2}))
    assert isinstance(found, Decision) and not found.sources[2].full
    found = choose(slots, survivors={0, 1}, has_local=True, groups=({0, 1}, {2}))
    assert isinstance(found, Impossible) and "replicated" in found.reason
    older = [*slots, own(0, 4), own(1, 4), own(2, 4)]
    found = choose(older, survivors={0, 1}, has_local=True, groups=({0, 1}, {2}))
    assert isinstance(found, Decision) and found.version == 4


def test_a_group_of_newcomers_whose_own_slots_are_full_needs_nobody() -> None:
    slots = [own(r, 5) for r in range(WORLD)]
    found = choose(slots, survivors={0}, has_local=True, groups=({0}, {1, 2}))
    assert isinstance(found, Decision) and found.source_rank == 0
    found = choose(slots, survivors={0}, has_constant=True, groups=({0}, {1, 2}))
    assert isinstance(found, Impossible)


@pytest.mark.parametrize("missing", range(WORLD))
def test_lost_says_who_lacks_what(missing: int) -> None:
    found = choose([own(r, 3) for r in range(WORLD) if r != missing])
    assert isinstance(found, Impossible) and "no version exists" in found.reason
    assert found.lost == {r: [] if r == missing else [3] for r in range(WORLD)}
