"""Who plays in the job: nodes are gathered until it can start; who comes later, or asks to, stands by.

No sockets and no clock: `service.py` tells of arrivals and of the time. The rules, as torchrun's c10d rendezvous has
them:
  * MIN nodes must come within `join_timeout_s`.
  * With MIN there, others have `last_call_s` to come, too. At MAX nodes the job starts at once.
  * Numbers are given when it starts: 0 to the node of the controller, the others in the order of their names. So the
    same machines have the same ranks in the next job. With --node-rank everybody brings a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ff_core.contract import alike
from ff_core.contract.job import JobSpec

_REMIND_S = 60.0


@dataclass(slots=True, eq=False)
class Arrival:
    """A node that has proved the secret. asked: its --node-rank, 0 for the controller's own node, -1 for none.
    launch: see ff_core.contract.alike.  node: its number in the job, -1 before it has one."""

    hostname: str
    address: str
    asked: int = -1
    standby: bool = False
    launch: dict[str, str] = field(default_factory=dict)
    node: int = -1

    @property
    def name(self) -> str:
        """For people."""
        return f"node {self.asked} ({self.hostname})" if self.asked >= 0 else f"{self.hostname} ({self.address})"


class Rendezvous:
    """size: how many nodes play ranks; None before the job starts. now: seconds of any clock that does not jump."""

    def __init__(self, job: JobSpec, line: dict[str, str], now: float) -> None:
        """line: what node 0 was started with, which the others must have been, too."""
        self._job, self._line = job, line
        self._least, self._most = job.nodes, max(job.nodes, job.most_nodes)
        self.size: int | None = None
        self.waiting: list[Arrival] = []
        self._next = 0
        self._live: set[int] = set()
        self._names: dict[int, str] = {}
        self._began = self._reminded = now
        self._enough_at = 0.0

    def problem(self, arrival: Arrival) -> str:
        """Why `arrival` cannot take part; empty if it can."""
        theirs = dict(arrival.launch or self._line)
        if arrival.standby:
            theirs["--node-rank"] = self._line.get("--node-rank", "")  # a standby has none
        differing = alike.differences(theirs, self._line)
        if differing:
            return f"{arrival.name} was started otherwise than node 0: {'; '.join(differing)}"
        if arrival.asked < 0:
            return ""
        if arrival.asked >= self._least:
            return f"node {arrival.asked} is not one of the job's {self._least} nodes"
        other = next((known.hostname for known in self.waiting if known.asked == arrival.asked), "")
        if arrival.asked in self._live:
            other = self._names[arrival.asked]
        return f"--node-rank {arrival.asked} was given twice, on {other} and on {arrival.hostname}" if other else ""

    def goes_on(self, nodes: dict[int, str], given: int) -> None:
        """The job runs: `nodes` are in it, number -> hostname, and numbers up to `given` were given."""
        self.size, self._next = self._least, given + 1
        self._live, self._names = set(nodes), dict(nodes)

    def lost(self, node: int) -> None:
        """`node` is not in the job any more: who comes again with its --node-rank stands by, under a new number."""
        self._live.discard(node)

    def come(self, arrival: Arrival, now: float) -> str:
        """Take `arrival` in. Returns what to say; empty for nothing."""
        self.waiting.append(arrival)
        if self.size is not None:
            return ""
        if arrival.standby:
            return f"{arrival.name} is here, to stand by; {self._missing()}"
        here = len(self._players())
        if here == self._least and here < self._most:
            self._enough_at = now
        if self._job.emulated or self._most == 1:
            return ""
        if here < self._least:
            return f"{arrival.name} is here; {self._missing()}"
        more = f", and those that come within {self._job.last_call_s:g} s" if here < self._most else ""
        return f"{arrival.name} is here; the job starts with {here} of at most {self._most} nodes{more}"

    def leave(self, arrival: Arrival) -> str:
        """`arrival` is gone before it had a number. Returns what to say."""
        self.waiting.remove(arrival)
        return f"{arrival.name} has gone before the job began; {self._missing()}"

    def _players(self) -> list[Arrival]:
        return [arrival for arrival in self.waiting if not arrival.standby]

    def _missing(self) -> str:
        missing = self._least - len(self._players())
        wanted = f"{self._least}" if self._least == self._most else f"{self._least} to {self._most}"
        return f"{max(0, missing)} of {wanted} nodes are still to come"

    def reminder(self, now: float) -> str:
        """Now and then, what is waited for."""
        if self.size is not None or now - self._reminded < _REMIND_S or len(self._players()) >= self._least:
            return ""
        self._reminded = now
        return self._missing()

    def overdue(self, now: float) -> str:
        """Why the job cannot begin any more; empty if it can."""
        if self.size is not None or len(self._players()) >= self._least:
            return ""
        if now - self._began < self._job.join_timeout_s:
            return ""
        return (
            f"{self._missing()}, and {self._job.join_timeout_s:g} s are over (--rdzv-conf join_timeout=SECONDS). Each "
            "node is to run the same command, and must reach this one"
        )

    def admitted(self, now: float) -> list[Arrival]:
        """Those who take part from now on, each with its `node`: all at once when the job starts, then whoever
        comes."""
        if self.size is None:
            players = self._players()
            full = len(players) >= self._most
            if len(players) < self._least or not any(arrival.asked == 0 for arrival in players):
                return []
            if not full and now - self._enough_at < self._job.last_call_s:
                return []
            # The controller's node trains, whoever came before it.
            first = sorted(players, key=lambda arrival: arrival.asked != 0)[: self._most]
            self.size = len(first)
            for number, arrival in enumerate(sorted(first, key=_order)):
                arrival.node = number
            self._next = self.size
        found, self.waiting = self.waiting, []
        for arrival in found:
            if arrival.node < 0:
                arrival.node, self._next = self._next, self._next + 1
            self._live.add(arrival.node)
            self._names[arrival.node] = arrival.hostname
        return sorted(found, key=lambda arrival: arrival.node)


def _order(arrival: Arrival) -> tuple[int, list[tuple[int, str]], str]:
    """Numbers that were asked for first, 0 before all; then names, numbers in them as numbers."""
    parts = re.findall(r"\d+|\D+", arrival.hostname)
    name = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
    return (arrival.asked if arrival.asked >= 0 else 1 << 30), name, arrival.address
