"""What the job does when no rank makes progress: it looks where all of them are, then ends those that keep the others.

    quiet -> looking    the stacks of all ranks are asked for (message `look`)
    looking -> quiet    they are here, or a node does not answer. Ranks that are still to blame are killed and replaced.
                        Any progress meanwhile, and any failover, ends it without that.

A stopped process goes on before it is killed, for only then it can answer. So its progress is no sign of anything, and
it is killed all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ff_core.controller.hang import Hang
from ff_core.controller.state import JobState

#: For an agent that answers late: it waits a second for processes that do not. None is waited for longer.
_LOOK_S = 2.0


@dataclass
class _Look:
    id: int
    hang: Hang
    epoch: int
    until: float
    missing: set[int]
    texts: dict[int, str] = field(default_factory=dict)


class Blame:
    """uneven(through, stuck): ends the job, whose ranks have different numbers of iterations."""

    def __init__(self, state: JobState, uneven: Callable[[list[int], list[int]], None]) -> None:
        self._state, self._out, self._uneven = state, state.out, uneven
        self._current: _Look | None = None
        self._asked = 0

    def tick(self, now: float) -> None:
        """Called a few times a second."""
        state, hangs = self._state, self._state.hangs
        if not state.is_protecting or not state.settled or state.left_version is not None:
            self._current = None
            return
        uneven = hangs.uneven(state.job.world_size, now)
        if uneven is not None:
            self._uneven(*uneven)
            return
        hang, current = hangs.judge(state.job.world_size, now), self._current
        if current is not None and current.epoch != state.epoch:
            current = None
        if current is not None and current.hang.stopped:
            hang = current.hang
        if hang is None:
            self._current = None
        elif current is None:
            self._look(hang, now)
        elif not current.missing or now > current.until:
            self._current = None
            self._end(hang, current.texts)

    def on_stacks(self, node: int, id: int, ranks: dict[int, str]) -> None:
        current = self._current
        if current is not None and current.id == id:
            current.missing.discard(node)
            current.texts.update(ranks)

    def _look(self, hang: Hang, now: float) -> None:
        self._state.hangs.looked()
        nodes = list(self._state.members.live_nodes())
        self._asked += 1
        self._current = _Look(self._asked, hang, self._state.epoch, now + _LOOK_S, set(nodes))
        for node in nodes:
            self._out.send(node, "look", id=self._asked, let_go=hang.culprits if hang.stopped else [])

    def _end(self, hang: Hang, texts: dict[int, str]) -> None:
        stacks = grouped(texts)
        if not hang.culprits:
            self._out.emit("hang", rank=-1, text=hang.text, stacks=stacks)
            self._out.say(hang.text)
        for rank in hang.culprits:
            self._out.emit("hang", rank=rank, text=hang.text, stacks=stacks)
            self._out.send(self._state.members.ranks[rank].node, "fail_worker", rank=rank, reason=hang.text)
        self._state.hangs.blamed(hang)


def grouped(texts: dict[int, str]) -> list[list[Any]]:
    """[ranks, text] of ranks that are at the same place: of thousands of ranks all but a few are."""
    found: dict[str, list[int]] = {}
    for rank in sorted(texts):
        found.setdefault(texts[rank], []).append(rank)
    return [[ranks, text] for text, ranks in found.items()]
