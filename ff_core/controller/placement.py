"""Which node holds whose replica.

A rank's replicas go to other failure domains, that is, other nodes: to the next ones in the ring of live nodes. With N
nodes of equal size every node holds the replicas of exactly one other node per replica.

When placement is computed anew, a holder is kept if it is still alive and still in another failure domain. So one loss
moves as few copies as possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Holders = dict[int, list[int]]  # rank -> nodes


def place(
    node_of: Mapping[int, int], live_nodes: Sequence[int], replicas: int, previous: Mapping[int, Sequence[int]]
) -> Holders:
    """Choose up to `replicas` holder nodes for every rank in `node_of` (rank -> node it runs on).

    Returns fewer (down to none) where there are not enough other live nodes: the caller says so to the user.
    """
    ring = sorted(live_nodes)
    position = {node: number for number, node in enumerate(ring)}
    load = dict.fromkeys(ring, 0)
    share = len(node_of) * replicas // max(1, len(ring))
    holders: Holders = {}
    for rank in sorted(node_of):
        home = node_of[rank]
        kept = [node for node in previous.get(rank, ()) if node in load and node != home][:replicas]
        holders[rank] = kept
        for node in kept:
            load[node] += 1
    for rank in sorted(node_of):
        home, chosen = node_of[rank], holders[rank]
        if len(chosen) >= replicas:
            continue  # of all ranks, in a failover without a lost node
        # nearest in the ring first, so that without losses this is the plain neighbour; load decides after losses
        start = position.get(home, 0)
        others = [node for node in ring[start:] + ring[:start] if node != home and node not in chosen]
        while len(chosen) < replicas and others:
            least = min(load[node] for node in others)
            node = next(node for node in others if load[node] <= least + share)
            others.remove(node)
            chosen.append(node)
            load[node] += 1
    return holders
