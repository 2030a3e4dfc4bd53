"""Members of a job whose network is cut, for `sim_cuts.py`: controllers, and agents that answer at once."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from ff_core.agent.allegiance import Allegiance
from ff_core.config.schema import FailoverConfig
from ff_core.contract.messages import AGENT_TO_CONTROLLER, Message, make, pack, unpack
from ff_core.controller.controller import Controller
from ff_core.controller.election import Election
from tests.controller.harness import Recorder

KEPT = 5  # the version that lies everywhere


class Charge:
    """A controller, on the launcher of `home`. number: the how manieth."""

    def __init__(self, home: int, number: int, out: Recorder, controller: Controller) -> None:
        self.home, self.number, self.out, self.controller = home, number, out, controller
        self.says: dict[int, deque[Message]] = {}
        self.hears: dict[int, deque[Message]] = {}
        self.is_dead = False

    @property
    def over(self) -> bool:
        return self.is_dead or self.out.result is not None or bool(self.out.ended_by)

    @property
    def live(self) -> list[int]:
        return self.controller.state.members.live_nodes()


class Member:
    """A node: its agent, with the product's allegiance, and its launcher."""

    def __init__(self, number: int, charge: Charge) -> None:
        self.number, self.obeys = number, charge
        self.alive = True  # its launcher
        self.trains = True  # its agent
        self.waits_at: int | None = None  # whom it has joined
        self.next_place = 0
        self.term = 0
        self.election = Election()
        state: Any = SimpleNamespace(
            epoch=0, halt_epoch=None, stopping=False, verdict=(0, 0, -1), config=FailoverConfig(), send=self._send,
            workers=SimpleNamespace(ranks=lambda: self.ranks, spares=list),
        )  # fmt: skip
        self.ranks: list[Any] = []
        self.state = state
        self.allegiance = Allegiance(state)

    def _send(self, name: str, **fields: Any) -> None:
        message = unpack(AGENT_TO_CONTROLLER, pack(make(AGENT_TO_CONTROLLER, name, **fields)))
        self.obeys.hears.setdefault(self.number, deque()).append(message)

    def plays(self, rank: int, uid: str, since: int) -> None:
        self.ranks = [other for other in self.ranks if other.rank != rank]
        self.ranks.append(SimpleNamespace(rank=rank, uid=uid, since=since, restored=True, dying=False, gone=False))

    def handle(self, message: Message, ranks: int) -> None:
        name, state = message["t"], self.state
        if name == "record":
            self.allegiance.on_record(message["number"], message["content"])
        elif name == "halt":
            state.halt_epoch, settled = message["epoch"], message.get("settled")
            if settled is not None and settled[1] > state.epoch:
                state.epoch, state.verdict = settled[1], (*settled,)
            slots = [[r, self.number, kind, state.epoch, KEPT, True] for r in range(ranks) for kind in ("replica",)]
            self._send("inventory", epoch=message["epoch"], arenas=slots, live={})
        elif name == "assign" and message["epoch"] == state.halt_epoch:
            self.plays(message["rank"], message["uid"], message["epoch"])
        elif name == "verdict" and message["epoch"] == state.halt_epoch:
            state.epoch, state.halt_epoch = message["epoch"], None
            state.verdict = message["old_epoch"], message["epoch"], message["version"]
            for worker in self.ranks:
                self._send("ready", rank=worker.rank, epoch=state.epoch, restored_bytes=0, at=0.0)
        elif name == "regroup" and message["epoch"] == state.epoch:
            for worker in self.ranks:
                self._send("resumed", rank=worker.rank, epoch=state.epoch, timings={})
                self._send("commit", epoch=state.epoch, versions={worker.rank: KEPT})
        elif name == "w" and message["epoch"] == state.epoch and state.halt_epoch is None:
            for worker in self.ranks:
                self._send("commit", epoch=state.epoch, versions={worker.rank: message["version"] + 1})
        elif name == "fail_worker":
            self.ranks = [worker for worker in self.ranks if worker.rank != message["rank"]]
        elif name == "stop":
            self.trains = False
