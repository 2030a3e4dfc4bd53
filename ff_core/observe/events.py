"""The event log of a job: OUT_DIR/events.jsonl, one JSON object a line, only ever appended to.

    {"t": 1763885817.31, "kind": "worker_start", "rank": 2, "pid": 4711, ...}

`t` is wall-clock time in seconds; `KINDS` says what else each kind carries. Several threads and processes may write:
every line is one write(2) to a file opened with O_APPEND.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ff_core.errors import FailoverError

FILE_NAME = "events.jsonl"

#: Phases of a failover, in their order; each is a duration in seconds.
PHASES = {
    "detect": "from the death until the controller knows",
    "halt": "until no survivor touches its state any more",
    "verdict": "until the version to continue from is decided and announced",
    "join": "until the replacement has built its trainer and loaded its slot",
    "regroup": "until all groups are connected anew",
    "restore": "redundant state from peers, scalars, RNG",
    "resume": "the interrupted iteration, done again",
}

#: kind -> its fields. Times (`at`, `*_at`) are wall-clock seconds, durations end in _s.
KINDS = {
    "job_start": "world_size, nodes, emulated, entrypoint",
    "worker_start": "rank, pid, node, warm (came from a spare), restart, epoch",
    "worker_exit": "rank, code (negative: the signal), at, kernel (what it has said of the process)",
    "spare_ready": "node, uid",
    "training_start": "coverage (text): what the job is protected against",
    "settings": "given {field: [value, where it came from]}: what is not a default",
    "commit": "W: newest version safe on every rank, epoch",
    "interval": "version: from it on, interval, was, why, most_lost: finished iterations that a death may cost; if it "
    "was chosen, what the rank that decided had measured: rank, lost_share, iteration_ms, fixed_ms, late_ms, slowed_ms",
    "injection": "rank, id, action, iteration, at (time)",
    "hint": "rank, text, site: a collective failed and no death is known yet",
    "halt": "epoch, dead, cause",
    "hang": "rank (-1: nobody is to blame), text: it is killed and replaced, stacks [[ranks, where their threads are]]",
    "node_start": "node, hostname, pid of its agent",
    "bad_slot": "rank, node, reason: a damaged copy was found, and emptied",
    "failover": "epoch, v_star, dead, cause, newcomers, spare (warm or cold), attempts, phases {name: s}, "
    "bytes {name: count}, total_s, died_at",
    "coverage": "text, replicas, wanted, degraded (fewer replicas than wanted)",
    "node_lost": "node, reason, ranks",
    "takeover": "node: its launcher has the controller from now on, lost: nodes gone with the one before, epoch",
    "drain": "node, step (accepted, refused, released), why (a signal, or fftrain drain), text",
    "waiting": "ranks that have no place, timeout_s, version that training will go on from",
    "persisted": "path, version: a checkpoint was saved",
    "version_kept": "version, path, bytes, took_s: a version is complete in persist_dir",
    "version_lost": "version, reason: a version was not written to persist_dir",
    "resume": "version, path: all ranks go on from a version in persist_dir",
    "rank_stats": "rank, what training lost for a copied version (ff_core.worker.rank_stats), counters of its engine",
    "unrecoverable": "text, lost {rank: what it can supply}, checkpoint",
    "restart": "reason, restart: the script starts from the beginning",
    "job_end": "code, summary",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One line. t: wall-clock seconds.  kind: see KINDS.  fields: the rest."""

    t: float
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class EventLog:
    """Writer. Never stops a job: when the disk refuses a line, that is said once on stderr and the line is lost."""

    def __init__(self, directory: str | Path) -> None:
        """Opens directory/events.jsonl, creating both. Raises FailoverError naming the path when that is impossible."""
        self.path = Path(directory) / FILE_NAME
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._finish_torn_line()
        except OSError as error:
            raise FailoverError(f"events cannot be written to {self.path}: {error.strerror}") from error
        self._warned = False

    def emit(self, kind: str, *, t: float | None = None, **fields: Any) -> None:
        """Append one event. t: its time, by default now. Values that JSON does not have are written as their str()."""
        line = json.dumps({"t": time.time() if t is None else t, "kind": kind, **fields}, default=str) + "\n"
        data = line.encode()
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
        except OSError as error:
            if not self._warned:
                self._warned = True
                print(f"fftrain: events are being lost: {self.path}: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Further events are an error. Closing twice is none."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _finish_torn_line(self) -> None:
        """A writer that was killed, or a full disk, may have left half a line: ours must not continue it."""
        for _ in range(5):  # another process may be in the middle of writing one
            size = os.fstat(self._fd).st_size
            if not size or os.pread(self._fd, 1, size - 1) == b"\n":
                return
            time.sleep(0.01)
        os.write(self._fd, b"\n")

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(directory: str | Path) -> list[Event]:
    """All events of a job, in the order of their times. Torn lines are left out.

    Raises FailoverError when `directory` has no event log or its file is not one.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise FailoverError(
            f"{path} does not exist: {directory} is not the output directory of a job "
            "(fftrain run --out-dir DIR makes one)"
        )
    lines = path.read_bytes().split(b"\n")
    events = [event for event in map(_parse, lines) if event is not None]
    if not events and any(lines):
        raise FailoverError(f"{path} holds no event: it was not written by fftrain")
    return sorted(events, key=lambda event: event.t)


def _parse(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        return Event(float(fields.pop("t")), str(fields.pop("kind")), fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
