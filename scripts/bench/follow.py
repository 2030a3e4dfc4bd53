"""What a running job says, as it says it: its events and its losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of JSON lines that others append to; `read()` gives what is new. Torn lines are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Objects of the complete lines since the last call. Nothing while the file does not exist."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        lines = []
        for line in data.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue  # its writer was killed
            if isinstance(value, dict):
                lines.append(value)
        return lines


class Watch:
    """State of a protected job in `directory`, put together from its events. Call `update()`, then look.

    pids: rank -> the process that plays it.  agents: node -> its agent's process.
    spares: node -> number of spares ready to take over (-1: one did before it was ready).
    w: newest version safe on every rank, -1 if none.
    failovers: their events, in order; recovering: one is under way.
    interval: the newest that was chosen.  stats: rank -> its newest `rank_stats` event.
    ended: the exit code, in the end.
    """

    def __init__(self, directory: Path) -> None:
        self._lines = JsonLines(directory / "events.jsonl")
        self.pids: dict[int, int] = {}
        self.agents: dict[int, int] = {}
        self.spares: dict[int, int] = {}
        self.w = -1
        self.interval = 1
        self.failovers: list[dict[str, Any]] = []
        self.stats: dict[int, dict[str, Any]] = {}
        self.training = self.recovering = False
        self.ended: int | None = None

    def update(self) -> list[dict[str, Any]]:
        """Take in what is new; returns the new events."""
        events = self._lines.read()
        for event in events:
            kind = event["kind"]
            if kind == "worker_start":
                self.pids[event["rank"]] = event["pid"]
                if event["warm"]:
                    # One that takes over while it gets ready says that it is ready all the same, later.
                    self.spares[event["node"]] = self.spares.get(event["node"], 0) - 1
            elif kind == "node_start":
                self.agents[event["node"]] = event["pid"]
            elif kind == "spare_ready":
                self.spares[event["node"]] = self.spares.get(event["node"], 0) + 1
            elif kind == "commit":
                self.w = event["W"]
            elif kind == "interval":
                self.interval = event["interval"]
            elif kind == "failover":
                self.failovers.append(event)
                self.recovering = False
            elif kind == "halt":
                self.recovering = True
            elif kind == "training_start":
                self.training = True
            elif kind == "rank_stats":
                self.stats[event["rank"]] = event
            elif kind == "job_end":
                self.ended = event["code"]
        return events
