"""Who is in the job: nodes, ranks and spares, as the controller knows them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Node:
    """One failure domain and its agent. host_id: equal for emulated nodes that share one machine's memory.
    deputy: where its launcher listens, as long as it lives (docs/protocol.md, section 8); None: nowhere."""

    id: int
    host_id: str
    hostname: str
    data_address: tuple[str, int]
    free_bytes: int
    last_beat: float
    deputy: tuple[str, int] | None = None
    pid: int = 0
    alive: bool = True
    leaving: bool = False  # it is drained, or got a signal: it gets no rank and no replica any more
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
    again: bool = False  # whoever runs its script again comes to the same end of the newest loop
    marked: int | None = None  # version with which it waits at the begin of a later loop
    exited: bool = False  # left with exit code 0 after may_leave
    failures: dict[int, list[int]] = field(default_factory=dict)  # iteration -> [deaths in it by SIGKILL, other ones]
    tail: str = ""  # last lines of its stderr, when it died


class Membership:
    """Tables of nodes and ranks with the questions the protocol asks of them."""

    def __init__(self, world_size: int, per_node: int) -> None:
        self.nodes: dict[int, Node] = {}
        self.ranks = {rank: Rank(rank, -1) for rank in range(world_size)}
        self._per_node = per_node  # ranks that a node has devices for

    def of_next_start(self, *, keep_failures: bool) -> Membership:
        """The same nodes, for ranks that start anew; keep_failures: their deaths so far still count."""
        after = Membership(len(self.ranks), self._per_node)
        after.nodes = self.nodes
        if keep_failures:
            for number, rank in self.ranks.items():
                after.ranks[number].failures = rank.failures
        return after

    def live_nodes(self) -> list[int]:
        return sorted(node.id for node in self.nodes.values() if node.alive)

    def places(self) -> list[int]:
        """Live nodes that may get ranks and replicas."""
        return [node for node in self.live_nodes() if not self.nodes[node].leaving]

    def standbys(self) -> list[int]:
        """Live nodes that play no rank, and may."""
        return [node for node in self.places() if not self.on_node(node)]

    def holding(self, replicas: int) -> list[int]:
        """Live nodes that get replicas: those that play ranks, and standbys only where these are too few."""
        playing = [node for node in self.places() if self.on_node(node)]
        return playing if len(playing) > replicas else self.places()

    def holds(self, node: int) -> bool:
        """Whether `node` keeps a replica."""
        return any(node in rank.holders for rank in self.ranks.values())

    def node_of(self) -> dict[int, int]:
        return {rank.rank: rank.node for rank in self.ranks.values()}

    def on_node(self, node: int) -> list[Rank]:
        return [rank for rank in self.ranks.values() if rank.node == node]

    def by_uid(self, uid: str) -> Rank | None:
        return next((rank for rank in self.ranks.values() if rank.uid == uid), None)

    def take_replacement(self, home: int, *, stays: bool = False) -> tuple[int, str | None, bool] | None:
        """(node, spare's uid or None for a cold start, whether it is ready) for a rank that lived on `home`; None:
        nowhere. stays: at home, if that lives: nobody else has the replicated state, which no own slot sends.

        In this order:
          1. If the node is lost: what a node with devices to spare has, such as a standby. So others need not share.
          2. A ready spare, at home before elsewhere.
          3. A spare that is still warming up.
          4. A cold start where there is a device: at home, on a node with devices to spare, or on another node of the
             same machine (emulated nodes share its devices).
        While `home` lives a standby is left as it is: its processes are for a whole node's ranks.
        """
        order = sorted(self.places(), key=lambda node: (node != home, node))
        roomy = [node for node in order if len(self.on_node(node)) < self._per_node]
        if stays and home in order:
            order = roomy = [home]
        if home in order:
            standbys = set(self.standbys())
            order = [node for node in order if node == home or node not in standbys]
        else:
            found = self._take_spare(roomy)
            if found is not None:
                return found
        found = self._take_spare(order)
        if found is not None:
            return found
        host = self.nodes[home].host_id if home in self.nodes else None
        cold = [node for node in order if node in (home, *roomy) or self.nodes[node].host_id == host]
        if not cold:
            return None
        return min(cold, key=lambda node: (node != home, len(self.on_node(node)))), None, False

    def has_room_without(self, nodes: Set[int]) -> bool:
        """Whether take_replacement() would find places for all ranks of `nodes`, were they gone."""
        others = [self.nodes[node] for node in self.places() if node not in nodes]
        hosts = {node.host_id for node in others}
        if others and all(self.nodes[node].host_id in hosts for node in nodes):
            return True
        wanted = sum(len(self.on_node(node)) for node in nodes)
        return wanted <= sum(max(self._per_node - len(self.on_node(n.id)), len(n.spares), 0) for n in others)

    def _take_spare(self, nodes: list[int]) -> tuple[int, str, bool] | None:
        for want_ready in (True, False):
            for node_id in nodes:
                for uid, ready in list(self.nodes[node_id].spares.items()):
                    if ready == want_ready:
                        del self.nodes[node_id].spares[uid]
                        return node_id, uid, ready
        return None

    def absent(self) -> set[int]:
        """Ranks that no process plays now."""
        return {rank.rank for rank in self.ranks.values() if not rank.alive}

    def holders(self) -> dict[int, list[int]]:
        return {rank.rank: list(rank.holders) for rank in self.ranks.values()}

    def holder_addresses(self) -> dict[int, dict[int, list[list[Any]]]]:
        """Live node -> its rank -> [[node, host, port], ...] of the agents that hold its replicas."""
        found: dict[int, dict[int, list[list[Any]]]] = {node: {} for node in self.live_nodes()}
        for rank in self.ranks.values():
            if rank.node in found:
                found[rank.node][rank.rank] = [[node, *self.nodes[node].data_address] for node in rank.holders]
        return found

    def layouts(self) -> dict[int, dict[str, dict[int, dict[str, Any]]]]:
        """Live node -> {"own": {rank: layout}, "replicas": {rank: layout}} that its agent must have memory for."""
        found: dict[int, dict[str, dict[int, dict[str, Any]]]]
        found = {node: {"own": {}, "replicas": {}} for node in self.live_nodes()}
        for rank in self.ranks.values():
            if rank.layout is None:
                continue
            if rank.node in found:
                found[rank.node]["own"][rank.rank] = dict(rank.layout)
            for node in rank.holders:
                if node in found:
                    found[node]["replicas"][rank.rank] = {**rank.layout, "local_bytes": 0}
        return found
