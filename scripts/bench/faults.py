"""The faults of `scripts/chaos.py`: which, when and to whom, drawn from a seed; and what each does to a job."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.follow import Watch
from bench.jobs import JobFailed
from tests.hosts import Hosts

#: kind -> (weight, what it is). Those of NEEDS_ALL take a host away: only while all copies and the standby are there.
KINDS = {
    "kill": (4, "SIGKILL for a rank"),
    "segv": (1, "SIGSEGV for a rank"),
    "two": (2, "SIGKILL for all ranks of a node"),
    "stop": (2, "SIGSTOP for a rank"),
    "node": (2, "power off for a host that has not the controller, which then comes again"),
    "unplug": (1, "the same host's cable is pulled, and plugged in again when it counts as lost"),
    "controller": (1, "SIGKILL for the launcher that has the controller; its host comes again"),
}
NEEDS_ALL = ("node", "unplug", "controller")
_NOTICED_S = 90.0


@dataclass(frozen=True, slots=True)
class Fault:
    """at_s: since training began.  draw: in [0, 1), decides about the rank or the host."""

    at_s: float
    kind: str
    draw: float


def plan(seed: int, seconds: float, every_s: float, kinds: Sequence[str]) -> list[Fault]:
    """Faults for `seconds`, `every_s` apart on average: between a third and five thirds of it."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at_s = every_s
    while at_s < seconds:
        kind = rng.choices(kinds, [KINDS[name][0] for name in kinds])[0]
        faults.append(Fault(at_s, kind, rng.random()))
        at_s += every_s * rng.uniform(1 / 3, 5 / 3)
    return faults


@dataclass
class Cluster:
    """A job of two nodes on three hosts, one of which stands by.

    command(host, standby, endpoint): what runs there.  done: (fault, what it was done to), in order.
    """

    hosts: Hosts
    directory: Path
    command: Callable[[int, bool, str], list[str]]
    environment: dict[str, str]
    watch: Watch
    launchers: dict[int, subprocess.Popen[Any]] = field(default_factory=dict)
    done: list[tuple[Fault, str]] = field(default_factory=list)
    _runs: int = 0
    _nodes: dict[int, int] = field(default_factory=dict)  # node of the job -> host
    _controller: int = 0  # host
    _lost: set[int] = field(default_factory=set)  # nodes
    _degraded: bool = False
    _hit: dict[int, set[int]] = field(default_factory=dict)  # version that was the last -> ranks

    def start(self, host: int, standby: bool) -> None:
        endpoint = f"{self.hosts.addresses[self._controller]}:29503"
        self._runs += 1
        log = self.directory / f"host{host}-{self._runs}.log"
        words = self.command(host, standby, endpoint)
        self.launchers[host] = self.hosts.start(host, words, log, self.environment)

    def look(self) -> list[dict[str, Any]]:
        """Take in what has happened. Raises JobFailed if the launcher that has the controller has ended badly."""
        events = self.watch.update()
        for event in events:
            if event["kind"] == "node_start":
                pid = event["pid"]
                found = [host for host in range(len(self.launchers)) if pid in self.hosts.pids(host)]
                if found:
                    self._nodes[event["node"]] = found[0]
            elif event["kind"] == "node_lost":
                self._lost.add(event["node"])
            elif event["kind"] == "takeover":
                self._controller = self._nodes[event["node"]]
                self._lost.update(event["lost"])
            elif event["kind"] == "coverage":
                self._degraded = event["degraded"]
        if self.watch.ended:
            raise JobFailed(f"the job ended with {self.watch.ended}: {events[-1].get('summary', '')}")
        return events

    def all_there(self) -> bool:
        """Whether the job can lose a host: three nodes, spares for all ranks of one on the standby, all copies."""
        nodes = self._nodes.keys() - self._lost
        at_home = {event for event in nodes if self.watch.spares.get(event, 0) >= 2}
        whole = not self._degraded and not self.watch.recovering
        return len(nodes) == 3 and bool(at_home) and whole

    def do(self, fault: Fault) -> None:
        """Let it happen. One that takes a host away becomes a kill while the job cannot lose one."""
        kind = fault.kind if fault.kind not in NEEDS_ALL or self.all_there() else "kill"
        whom = getattr(self, f"_do_{kind}")(fault.draw)
        self.done.append((fault, f"{kind} {whom}" if whom else "nobody: each rank has been hit since the last version"))

    def _rank(self, draw: float, beside: int = 0) -> int | None:
        """One that was not hit since the last version, nor the one `beside` it. A rank that dies again and again in
        the same iteration is the script's fault to the job."""
        ranks = [r for r in sorted(self.watch.pids) if not {r, r ^ beside} & self._hit.get(self.watch.w, set())]
        return ranks[int(draw * len(ranks))] if ranks else None

    def _signal(self, ranks: Sequence[int | None], number: int) -> str:
        if None in ranks:
            return ""
        for rank in ranks:
            assert rank is not None
            self._hit.setdefault(self.watch.w, set()).add(rank)
            try:
                os.kill(self.watch.pids[rank], number)
            except ProcessLookupError:
                continue  # it has just ended
        return f"rank {', '.join(map(str, ranks))} (after version {self.watch.w})"

    def _do_kill(self, draw: float) -> str:
        return self._signal([self._rank(draw)], signal.SIGKILL)

    def _do_segv(self, draw: float) -> str:
        return self._signal([self._rank(draw)], signal.SIGSEGV)

    def _do_stop(self, draw: float) -> str:
        return self._signal([self._rank(draw)], signal.SIGSTOP)

    def _do_two(self, draw: float) -> str:
        rank = self._rank(draw, beside=1)
        return "" if rank is None else self._signal([rank & ~1, rank | 1], signal.SIGKILL)

    def _other(self, draw: float) -> tuple[int, int]:
        """(node, host) of one that has not the controller."""
        others = sorted((node, host) for node, host in self._nodes.items()
                        if node not in self._lost and host != self._controller)  # fmt: skip
        return others[int(draw * len(others))]

    def _do_node(self, draw: float) -> str:
        node, host = self._other(draw)
        self.hosts.power_off(host)
        self._until(lambda: node in self._lost, f"node {node} counts as lost")
        self.start(host, True)
        return f"{node} on host {host}"

    def _do_unplug(self, draw: float) -> str:
        if not self.hosts.real:
            return self._do_node(draw)
        node, host = self._other(draw)
        self.hosts.unplug(host)
        self._until(lambda: node in self._lost, f"node {node} counts as lost")
        self.hosts.plug_in(host)
        return f"{node} on host {host}"

    def _do_controller(self, draw: float) -> str:
        host, before = self._controller, self._controller
        os.kill(self.launchers[host].pid, signal.SIGKILL)
        self._until(lambda: self._controller != before, "another node has the controller")
        self.hosts.power_off(host)
        self.start(host, True)
        return f"host {host}, now on host {self._controller}"

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _NOTICED_S
        while not condition():
            if time.monotonic() > deadline:
                raise JobFailed(f"not within {_NOTICED_S:g} s: {what}")
            time.sleep(0.05)
            self.look()
