"""Which version to go on from, and where every rank gets it: a pure function of what survived.

States and rules: docs/protocol.md, section 4. The newest version that *every* rank can supply wins; a rank keeps its
live tensors if they are at that version, else takes its own slot, else a replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

from ff_core.contract.slot_report import SlotReport

#: Why nobody can go on from a version that every rank has.
UNFINDABLE = (
    "the loop was left by `break`, `return` or an exception, so no replacement would find its end, and some rank has "
    "no older version. Bound the loop by the number of its items instead: ff_deepspeed.batches(..., "
    "limit=N), ff_megatron.iterations(N)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rank gets version v*. kind "live": keeps its tensors; else the slot of that kind on `node`.

    full: the REPLICATED tensors come from there too, not only what is sent to replicas.
    """

    kind: Literal["live", "own", "replica"]
    node: int = -1
    full: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """version: v*.  sources: one per rank.  source_rank: who broadcasts redundant state, None if nobody can and
    nobody needs it."""

    version: int
    sources: dict[int, Source]
    source_rank: int | None


@dataclass(frozen=True, slots=True)
class Impossible:
    """No common version. lost: rank -> versions it could still supply (possibly none)."""

    lost: dict[int, list[int]]
    reason: str


def decide(
    *,
    world_size: int,
    epoch: int,
    live: Mapping[int, int],
    survivors: Set[int],
    slots: Iterable[SlotReport],
    has_local: bool,
    has_constant: bool,
    node_of: Mapping[int, int],
    groups: Iterable[Set[int]] = (),
    unfindable: Set[int] = frozenset(),
) -> Decision | Impossible:
    """Choose v*.

    epoch: the one that ends; slots of another are ignored (docs/protocol.md, section 4).
    live: rank -> version of whole, sealed live tensors.
    survivors: ranks whose process has held full state before (never a newcomer that has not restored).
    has_local: the job has REPLICATED tensors, which replicas lack.  has_constant: it has CONSTANT ones, which no
    slot holds.
    node_of: rank -> the node of the process that plays it from now on; an own slot there is preferred to others.
    groups: redundancy groups, the ranks that hold the same REPLICATED and CONSTANT tensors; empty: all ranks are one.
    unfindable: versions that nobody can go on from, see JobState.
    """
    redundant = [frozenset(group) for group in groups] or [frozenset(range(world_size))]
    by_rank: dict[int, list[SlotReport]] = {rank: [] for rank in range(world_size)}
    for report in slots:
        if report.epoch == epoch and report.rank in by_rank:
            # A replica's arena has no room for REPLICATED tensors, and they are not sent from an own slot elsewhere:
            # full of what it holds is not full of what the rank gets.
            here = report.kind == "own" and report.node == node_of.get(report.rank)
            by_rank[report.rank].append(replace(report, full=report.full and (here or not has_local)))
    supply = {
        rank: {report.version for report in by_rank[rank]} | ({live[rank]} if rank in live else set())
        for rank in range(world_size)
    }
    common = set.intersection(*supply.values()) if supply else set()
    lost = {rank: sorted(versions) for rank, versions in supply.items()}
    reason = UNFINDABLE if common else "no version exists that every rank can supply"
    for version in sorted(common - unfindable, reverse=True):
        sources = {rank: _source(rank, version, live, by_rank[rank], node_of) for rank in range(world_size)}
        complete = {rank for rank, source in sources.items() if source.full and rank in survivors}
        without = [group for group in redundant if not complete & group]
        kept = not has_local or all(sources[rank].full for group in without for rank in group)
        if not without or (not has_constant and kept):
            return Decision(version, sources, min(complete, default=None))
        reason = "no process that holds the replicated and frozen state survives, and replicas do not carry it"
    return Impossible(lost, reason)


def _source(
    rank: int, version: int, live: Mapping[int, int], reports: list[SlotReport], node_of: Mapping[int, int]
) -> Source:
    if live.get(rank) == version:
        return Source("live", node_of.get(rank, -1))
    candidates = [report for report in reports if report.version == version]
    # full first: it has everything; then an own slot, and the lowest node, so that the choice is reproducible
    best = min(candidates, key=lambda r: (not r.full, r.kind != "own", r.node != node_of.get(rank), r.node))
    return Source(best.kind, best.node, best.full)
