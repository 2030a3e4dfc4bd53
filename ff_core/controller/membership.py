"""Who is in the job: nodes, ranks and spares, as the controller knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Node:
    """One failure domain and its agent. host_id: equal for emulated nodes that share one machine's memory."""

    id: int
    host_id: str
    hostname: str
    data_address: tuple[str, int]
    free_bytes: int
    last_beat: float
    pid: int = 0
    alive: bool = True
    spares: dict[str, bool] = field(default_factory=dict)  # uid -> ready


@dataclass(slots=True)
class Rank:
    """One logical rank and the worker that plays it now."""

    rank: int
    node: int
    uid: str = ""
    alive: bool = False
    started: bool = False  # its agent has said that the process `uid` runs
    training: bool = False  # version 0 (or v*) exists: the loop has begun
    restored: bool = True  # False: a newcomer that has not yet restored; its live tensors mean nothing
    layout: dict[str, int] | None = None
    holders: list[int] = field(default_factory=list)
    committed: tuple[int, int] = (-1, -1)  # (epoch, version)
    leaving: int | None = None  # version with which it waits at the loop's end
    exited: bool = False  # left with exit code 0 after may_leave
    failures: dict[int, int] = field(default_factory=dict)  # iteration -> deaths in it
    tail: str = ""  # last lines of its stderr, when it died


class Membership:
    """Tables of nodes and ranks with the questions the protocol asks of them."""

    def __init__(self, world_size: int) -> None:
        self.nodes: dict[int, Node] = {}
        self.ranks = {rank: Rank(rank, -1) for rank in range(world_size)}

    def of_next_start(self, *, keep_failures: bool) -> Membership:
        """The same nodes, for ranks that start anew; keep_failures: their deaths so far still count."""
        after = Membership(len(self.ranks))
        after.nodes = self.nodes
        if keep_failures:
            for number, rank in self.ranks.items():
                after.ranks[number].failures = rank.failures
        return after

    def live_nodes(self) -> list[int]:
        return sorted(node.id for node in self.nodes.values() if node.alive)

    def node_of(self) -> dict[int, int]:
        return {rank.rank: rank.node for rank in self.ranks.values()}

    def on_node(self, node: int) -> list[Rank]:
        return [rank for rank in self.ranks.values() if rank.node == node]

    def by_uid(self, uid: str) -> Rank | None:
        return next((rank for rank in self.ranks.values() if rank.uid == uid), None)

    def take_replacement(self, home: int) -> tuple[int, str | None, bool] | None:
        """(node, spare's uid or None for a cold start, whether it is ready) for a rank that lived on `home`; None:
        nowhere.

        Ready spares first, at home before elsewhere; then one still warming up; then a cold start at home, or on
        another node of the same machine (emulated nodes share its devices). A cold start on a foreign machine would
        have no device.
        """
        order = sorted(self.live_nodes(), key=lambda node: (node != home, node))
        for want_ready in (True, False):
            for node_id in order:
                for uid, ready in list(self.nodes[node_id].spares.items()):
                    if ready == want_ready:
                        del self.nodes[node_id].spares[uid]
                        return node_id, uid, ready
        host = self.nodes[home].host_id if home in self.nodes else None
        cold = [node for node in order if node == home or self.nodes[node].host_id == host]
        if not cold:
            return None
        return min(cold, key=lambda node: (node != home, len(self.on_node(node)))), None, False

    def holders(self) -> dict[int, list[int]]:
        return {rank.rank: list(rank.holders) for rank in self.ranks.values()}

    def holder_addresses(self) -> dict[int, list[list[Any]]]:
        """rank -> [[node, host, port], ...] of the agents that hold its replicas."""
        return {
            rank.rank: [[node, *self.nodes[node].data_address] for node in rank.holders] for rank in self.ranks.values()
        }

    def layouts_for(self, node: int) -> dict[str, dict[int, dict[str, Any]]]:
        """{"own": {rank: layout}, "replicas": {rank: layout}} that the agent of `node` must have memory for."""
        own, replicas = {}, {}
        for rank in self.ranks.values():
            if rank.layout is None:
                continue
            if rank.node == node:
                own[rank.rank] = dict(rank.layout)
            if node in rank.holders:
                replicas[rank.rank] = {**rank.layout, "local_bytes": 0}
        return {"own": own, "replicas": replicas}
