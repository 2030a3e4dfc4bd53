"""Agent and controller of a job with one rank, in a few lines: the same for a real rank and for a simulated one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ff_core.contract.messages import WORKER_TO_AGENT, make


class OneJob(ABC):
    """What the rank says comes to `heard`, and is answered at once. messages: all of it, in order.

    arena: the rank's, None before it has one.  interval: what the rank is told with the next W; may change.
    live_counts: live tensors may be gone on from.
    """

    live_counts = True

    def __init__(self, arena: Any, interval: int) -> None:
        self.arena, self.interval = arena, interval
        self.messages: list[dict[str, Any]] = []

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Of the newest halt, else the one that the rank began in."""

    @abstractmethod
    def make_arena(self, **sizes: int) -> Any:
        """Memory for the rank's slots."""

    @abstractmethod
    def tell(self, name: str, arena: Any = None, **fields: Any) -> None:
        """A message for the rank. arena: goes with it."""

    @abstractmethod
    def lose(self) -> None:
        """A rank of the job dies: halt."""

    @property
    def said(self) -> list[str]:
        """The names of what the rank has said."""
        return [message["t"] for message in self.messages]

    def heard(self, name: str, **fields: Any) -> None:
        self.messages.append(make(WORKER_TO_AGENT, name, **fields))  # refuses what the contract does not know
        if name == "protect":
            self.arena = self.make_arena(**{key: fields[key] for key in ("sent_bytes", "local_bytes", "blob_capacity")})
            self.tell("arena", self.arena, holders=[], coverage="", epoch=self.epoch, interval=self.interval)
        elif name == "halted":
            self.decide(fields)
        elif name == "ready":
            self.tell("regroup", epoch=fields["epoch"])
        elif name == "bad_slot":
            self.lose()
        elif name == "leaving":
            self.tell("may_leave", epoch=fields["epoch"], version=fields["version"])

    def decide(self, live: dict[str, Any]) -> None:
        """Go on from the live tensors if they are whole and sealed, else from the newest complete slot."""
        complete = [(info.version, slot) for slot, info in enumerate(self.arena.slot_infos()) if info.complete]
        version, slot = max(complete)
        keeps = self.live_counts and live["sealed"] and live["version"] >= version
        if keeps:
            version = live["version"]
        else:
            self.arena.restamp(slot, self.epoch)
        self.tell(
            "go_on", self.arena, epoch=self.epoch, version=version, newcomers=[], restored=[] if keeps else [0],
            resumes=False, holders=[], coverage="", source="live" if keeps else "slot", filled=False,
            interval=self.interval,
        )  # fmt: skip
