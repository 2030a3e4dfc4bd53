"""The part of the controller that provides for its own end: it tells all agents what a successor will need.

The rules are in docs/protocol.md, section 8; what it tells is in `record.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.controller.record import Record, places
from ff_core.controller.state import JobState


class Succession:
    """Of the whole job. preload: what spares import, once it is known.  number: of the newest record."""

    def __init__(self, state: JobState, preload: Callable[[], dict[str, Any] | None]) -> None:
        self._state, self._preload = state, preload
        self.number = 0
        self._told: tuple[Any, ...] = ()

    def look(self, *, nodes: bool = False) -> None:
        """Something has happened. If a successor would have to know it, all agents are told. Cheap if not.
        nodes: one has come or gone."""
        state = self._state
        if not state.is_protecting or state.resuming is not None or state.has_left() or state.finished:
            self._told = ()  # a death is no failover now, and agents have no record
            return
        told = (
            state.restart, state.epoch, state.settled, len(state.fired), state.last_checkpoint,
            self._preload() is not None,
        )  # fmt: skip
        if told != self._told or nodes:
            self._told = told
            self.tell()

    def tell(self) -> None:
        """A new record, to every agent; none where all nodes have one launcher, or where some launcher cannot be proven
        dead: then nobody is to take over."""
        members = self._state.members
        listening = places(members)
        if len(listening) < 2 or set(listening) != set(members.live_nodes()):
            return
        self.number += 1
        content = Record.of(self._state, self._preload()).to_wire()
        for node in members.live_nodes():
            self._state.out.send(node, "record", number=self.number, content=content)
