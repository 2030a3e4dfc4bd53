"""Whether a controller may still decide: how many of those who could elect another one have not left it.

No messages and no clock. The rules are in docs/protocol.md, section 8.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Any

from ff_core.contract.terms import can_elect

#: node -> [host, port] where its launcher listens.
Places = dict[int, list[Any]]


@dataclass(slots=True)
class _Told:
    """A membership, and the number of the first record with it."""

    number: int
    places: Places


def is_majority(places: Collection[int], nodes: Collection[int]) -> bool:
    """More than half of `places` are among `nodes`: they may elect a controller."""
    return 2 * len(set(places) & set(nodes)) > len(places)


class Quorum:
    """Of one controller. dead: nodes that are proven so.

    Memberships count from when a record with them was sent. One counts no more when a newer record is with every live
    node of it, and with half of it at least: no majority of it can be without the newer one.
    """

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self._was_away = False
        self._told: list[_Told] = []  # oldest first
        self._has: dict[int, int] = {}  # node -> number of its newest record

    def tells(self, number: int, places: Places) -> None:
        """Record `number` is about to be sent: the job's nodes are `places`. Empty: agents are to have no record."""
        if not self._told or self._told[-1].places != places:
            self._told.append(_Told(number, dict(places)))

    def has(self, node: int, number: int, live: Collection[int]) -> bool:
        """`node` has record `number`. Whether fewer memberships count now. live: nodes that this controller hears."""
        self._has[node] = max(self._has.get(node, 0), number)
        return self.settle(live)

    def settle(self, live: Collection[int]) -> bool:
        """Drop memberships that count no more. Whether there were any."""
        before, after = len(self._told), self._told[1:]
        kept = [old for old, new in zip(self._told, after, strict=False) if not self._replaced(old, new.number, live)]
        self._told = kept + self._told[-1:]
        return len(self._told) < before

    def _replaced(self, old: _Told, number: int, live: Collection[int]) -> bool:
        having = {node for node in old.places if self._has.get(node, 0) >= number}
        return (old.places.keys() & set(live)) <= having and self._is_sure(old.places, having)

    def is_told(self) -> bool:
        """Agents have a record, or soon will."""
        return bool(self._told and self._told[-1].places)

    def can_be_outvoted(self) -> bool:
        """Others are a majority of some membership that counts."""
        return any(can_elect(told.places) for told in self._told)

    def elders(self) -> list[Places]:
        """Memberships that count beside the newest."""
        return [told.places for told in self._told[:-1]]

    def holds(self, live: Collection[int]) -> bool:
        """Nobody else is elected without a node of `live`: by no membership that counts."""
        return all(self._is_sure(told.places, set(live)) for told in self._told)

    def _is_sure(self, places: Collection[int], nodes: Set[int]) -> bool:
        """Half of `places` are `nodes`; or all others are dead, and have elected nobody before."""
        alone = not self._was_away and set(places) <= nodes | self.dead
        return alone or 2 * len(nodes & set(places)) >= len(places)

    def was_away(self) -> None:
        """This process stood still, for as long as others need to elect another controller. Whoever is dead now may
        have done so before."""
        self._was_away = True

    def unproven(self, live: Collection[int]) -> dict[int, tuple[str, int]]:
        """Nodes that are not heard and may live: node -> where its launcher would listen."""
        known = {node: place for told in self._told for node, place in told.places.items()}
        return {n: (place[0], place[1]) for n, place in known.items() if n not in live and n not in self.dead}
