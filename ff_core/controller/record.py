"""What a controller tells agents so that another one can take over: all that nobody could be asked for.

Agents keep the newest one and do not look into it. The rules are in docs/protocol.md, section 8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ff_core.contract.persisted import Part
from ff_core.controller.membership import Membership
from ff_core.controller.quorum import Places
from ff_core.controller.state import JobState, StateKinds


@dataclass(frozen=True, slots=True)
class Record:
    """Plain values only: it travels as a map (msgpack).

    job, settings: JobSpec.to_wire(), Settings.to_wire().  line: what nodes that come must have been started with.
    places: node -> [host, port] where its launcher listens; the nodes of the job.  elders: places of older records, by
    which another controller could still be elected.  machines: node -> [host_id, hostname], of lost ones, too.
    layouts, holders, homes, failures: by rank.  constants: rank -> [file, bytes].
    kinds: has_constant, frozen, on_device, groups.  preload: fields of the message; empty: none yet.
    serial: of the next version on disk.  unfindable, begun_from: as in JobState.
    """

    job: dict[str, Any]
    settings: dict[str, Any]
    line: dict[str, str]
    restart: int
    places: Places
    elders: list[Places]
    machines: dict[int, list[str]]
    layouts: dict[int, dict[str, int]]
    holders: dict[int, list[int]]
    homes: dict[int, int]
    failures: dict[int, dict[int, list[int]]]
    kinds: dict[str, Any]
    constants: dict[int, list[Any]]
    fired: list[int]
    checkpoint: list[Any]
    serial: int
    preload: dict[str, Any]
    unfindable: list[int]
    begun_from: int

    @classmethod
    def of(cls, state: JobState, preload: dict[str, Any] | None) -> Record:
        """Of a job that trains."""
        assert state.settings is not None
        members, kinds = state.members, state.kinds
        return cls(
            job=state.job.to_wire(),
            settings=state.settings.to_wire(),
            line=state.line,
            restart=state.restart,
            places=places(members),
            elders=state.quorum.elders(),
            machines={number: [node.host_id, node.hostname] for number, node in members.nodes.items()},
            layouts={number: dict(rank.layout or {}) for number, rank in members.ranks.items()},
            holders=members.holders(),
            homes=members.node_of(),
            failures={number: dict(rank.failures) for number, rank in members.ranks.items() if rank.failures},
            kinds={
                "has_constant": kinds.has_constant,
                "frozen": sorted(kinds.frozen),
                "on_device": kinds.on_device,
                "groups": [sorted(group) for group in sorted(kinds.groups, key=min)],
            },
            constants={rank: [part.file, part.size] for rank, part in state.constants.items()},
            fired=sorted(state.fired),
            checkpoint=[*(state.last_checkpoint or ())],
            serial=state.serial,
            preload=preload or {},
            unfindable=sorted(state.unfindable),
            begun_from=state.begun_from,
        )

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, fields: dict[str, Any]) -> Record:
        """Raises TypeError or ValueError for what is no record."""
        return cls(**fields)

    def put_into(self, state: JobState) -> None:
        """All of it but who is in the job, and what each node says of itself."""
        state.restart, state.serial, state.fired = self.restart, self.serial, set(self.fired)
        state.line, state.unfindable, state.begun_from = self.line, set(self.unfindable), self.begun_from
        state.last_checkpoint = (self.checkpoint[0], self.checkpoint[1]) if self.checkpoint else None
        state.constants = {rank: Part(*part) for rank, part in self.constants.items()}
        state.kinds = StateKinds(
            has_constant=self.kinds["has_constant"],
            frozen=set(self.kinds["frozen"]),
            on_device=self.kinds["on_device"],
            groups={frozenset(group) for group in self.kinds["groups"]},
        )
        for number, rank in state.members.ranks.items():
            rank.node, rank.layout, rank.holders = self.homes[number], self.layouts[number], self.holders[number]
            rank.failures = self.failures.get(number, {})
            rank.started = rank.training = True


def places(members: Membership) -> Places:
    """node -> [host, port] where its launcher listens, of live nodes."""
    return {node: [*deputy] for node in members.live_nodes() if (deputy := members.nodes[node].deputy) is not None}
