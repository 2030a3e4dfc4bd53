"""A job's story: its events put together into processes, failovers, progress and losses, as the report shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ff_core.observe.events import PHASES, Event, read_events

LOSSES = "losses.jsonl"
#: Kinds that a reader of the story wants to see one by one.
NOTABLE = (
    "injection", "hint", "hang", "bad_slot", "coverage", "node_lost", "waiting", "drain", "unrecoverable", "restart",
    "persisted", "version_kept", "version_lost", "resume", "interval",
)  # fmt: skip


@dataclass(slots=True)
class Life:
    """One process playing a rank. Times in wall-clock seconds; end and code are None while it lives."""

    rank: int
    pid: int
    node: int
    start: float
    warm: bool = False
    epoch: int = 0
    end: float | None = None
    code: int | None = None


@dataclass(slots=True)
class Recovery:
    """One failover. phases: every name of PHASES, seconds.  began: wall-clock time of the death."""

    epoch: int
    v_star: int
    dead: list[int]
    cause: str
    newcomers: list[int]
    spare: str
    attempts: int
    phases: dict[str, float]
    bytes: dict[str, int]
    began: float
    total_s: float


@dataclass(slots=True)
class Story:
    """What happened. losses: (step, loss), one per step.  commits: (wall-clock time, W).  code: None while it runs.
    stats: rank -> the newest counters of the process that plays it (see `rank_stats` in ff_core.observe.events).
    intervals: fields of the events `interval`, in order.
    """

    start: float
    end: float
    world_size: int
    nodes: int = 1
    training_start: float | None = None
    code: int | None = None
    summary: str = ""
    coverage: str = ""
    restarts: int = 0
    lives: list[Life] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    commits: list[tuple[float, int]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)
    stats: dict[int, dict[str, Any]] = field(default_factory=dict)
    intervals: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last_version(self) -> int:
        """Newest version safe on every rank; -1: none."""
        return max((version for _, version in self.commits), default=-1)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain JSON values."""
        return {
            "world_size": self.world_size,
            "nodes": self.nodes,
            "duration_s": self.end - self.start,
            "code": self.code,
            "restarts": self.restarts,
            "last_version": self.last_version,
            "intervals": self.intervals,
            "rank_stats": {str(rank): self.stats[rank] for rank in sorted(self.stats)},
            "failovers": [
                {
                    "epoch": r.epoch, "v_star": r.v_star, "dead": r.dead, "cause": r.cause, "newcomers": r.newcomers,
                    "spare": r.spare, "attempts": r.attempts, "phases": r.phases, "bytes": r.bytes,
                    "total_s": r.total_s,
                }
                for r in self.recoveries
            ],
        }  # fmt: skip


def load_story(directory: str | Path) -> Story:
    """The story of the job whose output is in `directory`. Raises FailoverError if there is none."""
    events = read_events(directory)
    # A directory that was used for several jobs tells of the last one.
    starts = [index for index, event in enumerate(events) if event.kind == "job_start"]
    story = tell(events[starts[-1] :] if starts else events)
    story.losses = read_losses(Path(directory) / LOSSES)
    return story


def tell(events: list[Event]) -> Story:
    """The story of one job's events, which are in the order of their times."""
    first = events[0].t if events else 0.0
    story = Story(start=first, end=events[-1].t if events else first, world_size=0)
    playing: dict[int, Life] = {}
    for event in events:
        get = event.fields.get
        if event.kind == "job_start":
            story.world_size, story.nodes = int(get("world_size", 0)), int(get("nodes", 1))
        elif event.kind == "training_start":
            story.training_start = event.t
            story.coverage = str(get("coverage") or "")
        elif event.kind == "worker_start":
            _end(playing.pop(int(get("rank", 0)), None), event.t, None)
            life = Life(int(get("rank", 0)), int(get("pid", 0)), int(get("node", 0)), event.t,
                        bool(get("warm", False)), int(get("epoch", 0)))  # fmt: skip
            playing[life.rank] = life
            story.lives.append(life)
        elif event.kind == "worker_exit":
            _end(playing.pop(int(get("rank", 0)), None), float(get("at", event.t)), int(get("code", 0)))
        elif event.kind == "failover":
            story.recoveries.append(_recovery(event))
        elif event.kind == "rank_stats":
            story.stats[int(get("rank", 0))] = {name: value for name, value in event.fields.items() if name != "rank"}
        elif event.kind == "interval":
            story.intervals.append(dict(event.fields))
        elif event.kind == "commit":
            story.commits.append((event.t, int(get("W", -1))))
        elif event.kind == "job_end":
            story.code, story.summary = int(get("code", 0)), str(get("summary") or "")
        if event.kind == "restart":
            story.restarts += 1
        if event.kind == "coverage":
            story.coverage = str(get("text") or "")
        if event.kind in NOTABLE:
            story.notes.append(event)
    story.world_size = max([story.world_size, *(life.rank + 1 for life in story.lives)])
    return story


def _end(life: Life | None, at: float, code: int | None) -> None:
    if life is not None:
        life.end, life.code = max(at, life.start), code


def _recovery(event: Event) -> Recovery:
    get = event.fields.get
    phases = {name: max(0.0, float((get("phases") or {}).get(name, 0.0))) for name in PHASES}
    total = float(get("total_s", sum(phases.values())))
    return Recovery(
        epoch=int(get("epoch", 0)),
        v_star=int(get("v_star", -1)),
        dead=[int(rank) for rank in get("dead") or []],
        cause=str(get("cause") or ""),
        newcomers=[int(rank) for rank in get("newcomers") or []],
        spare=str(get("spare") or "cold"),
        attempts=int(get("attempts", 1)),
        phases=phases,
        bytes={str(name): int(count) for name, count in (get("bytes") or {}).items()},
        began=float(get("died_at", event.t - total)),
        total_s=total,
    )


def read_losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) from lines {"step": 3, "loss": 1.25}. Lines are at-least-once: the last one of a step counts."""
    losses: dict[int, float] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                fields = json.loads(line)
                losses[int(fields["step"])] = float(fields["loss"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill; the step is written again
    return sorted(losses.items())
