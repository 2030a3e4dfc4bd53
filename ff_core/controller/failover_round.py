"""One attempt to get from a death back to training: everything the controller collects for one new epoch.

States: HALTING (inventories come in) -> JOINING (verdict sent, ranks get ready) -> REGROUPING (groups swap, state is
rebuilt) -> RESUMED (all train; the interrupted iteration is being redone) -> DONE. Another death abandons the round;
the next one has a higher epoch and inherits the set of dead ranks and the time of the first death.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ff_core.contract.slot_report import SlotReport
from ff_core.controller.outbox import Outbox


class Step(Enum):
    HALTING = "halting"
    JOINING = "joining"
    REGROUPING = "regrouping"
    RESUMED = "resumed"
    DONE = "done"


@dataclass(slots=True)
class FailoverRound:
    """epoch: the one that begins; old_epoch: the one whose slots count.  Times are wall-clock seconds."""

    epoch: int
    old_epoch: int
    dead: set[int]
    cause: str
    died_at: float  # the first death of this failover, as seen (or scripted) nearest to it
    detected_at: float  # the controller knew
    step: Step = Step.HALTING
    inventories: dict[int, list[SlotReport]] = field(default_factory=dict)  # node -> its slots
    live: dict[int, int] = field(default_factory=dict)  # rank -> whole sealed version
    version: int = -1
    newcomers: list[int] = field(default_factory=list)
    warm: dict[int, bool] = field(default_factory=dict)  # newcomer -> came from a spare
    ready_at: dict[int, float] = field(default_factory=dict)
    restored_bytes: int = 0
    resumed: dict[int, dict[str, float]] = field(default_factory=dict)
    redone: dict[int, float] = field(default_factory=dict)
    halted_at: float = 0.0
    verdict_at: float = 0.0
    all_ready_at: float = 0.0
    resumed_at: float = 0.0
    attempts: int = 1
    waits_since: float | None = None  # ranks have no place, and a node is waited for
    #: Of a controller that has just taken over: old epoch, epoch and version of the newest verdict before.
    settled: tuple[int, int, int] | None = None

    def slots(self) -> list[SlotReport]:
        return [report for reports in self.inventories.values() for report in reports]

    def explain(self, guess: str, cause: str) -> None:
        """What is known now of a death that the failover has begun with."""
        self.cause = self.cause.replace(guess, cause)

    def close(self, out: Outbox) -> None:
        """The interrupted iteration is done again everywhere (or the loop has ended): report the failover."""
        self.step = Step.DONE
        summary = self.summary(out.now())
        out.emit("failover", **summary)
        out.say(
            f"failover to epoch {self.epoch}: {self.cause}; everyone went on after iteration {self.version}, "
            f"{summary['total_s']:.2f} s later "
            f"({summary['spare']} replacement for ranks {summary['newcomers']})"
        )

    def summary(self, now: float) -> dict[str, Any]:
        """The structured event of a finished failover: phases in seconds, see `ff_core.observe.events`."""
        slowest = {
            name: max((timings.get(name, 0.0) for timings in self.resumed.values()), default=0.0)
            for name in ("regroup", "rebuild", "scalars")
        }
        newcomer_ready = max(
            (self.ready_at[rank] for rank in self.newcomers if rank in self.ready_at), default=self.verdict_at
        )
        return {
            "epoch": self.epoch,
            "v_star": self.version,
            "dead": sorted(self.dead),
            "cause": self.cause,
            "newcomers": list(self.newcomers),
            "spare": "warm" if self.warm and all(self.warm.values()) else "cold",
            "attempts": self.attempts,
            "phases": {
                "detect": max(0.0, self.detected_at - self.died_at),
                "halt": self.halted_at - self.detected_at,
                "verdict": self.verdict_at - self.halted_at,
                "join": max(0.0, newcomer_ready - self.verdict_at),
                "regroup": max(0.0, self.all_ready_at - newcomer_ready) + slowest["regroup"],
                "restore": slowest["rebuild"] + slowest["scalars"],
                "resume": max(0.0, max(self.redone.values(), default=now) - self.resumed_at),
            },
            "bytes": {"restored": self.restored_bytes},
            "total_s": max(self.redone.values(), default=now) - self.died_at,
            "died_at": self.died_at,
        }
