"""What many failovers leave behind in the processes that live through all of them."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from bench.follow import Watch
from bench.jobs import EVERY, Cluster, Job, Training, fftrain_command
from bench.recovery import Assassin, Say

#: An iteration's activations come and go; what stays shows at the lowest point.
_SAMPLED_S, _SAMPLE_S = 3.0, 0.01
#: Growth that counts as none, as a fraction; and, as a page or two always move, in absolute numbers.
_ALLOWED = 0.05
_SLACK = {"descriptors": 0, "threads": 0, "shared_bytes": 0, "resident_bytes": 4 << 20}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds. shared_bytes: size of its shared mappings that are memory.  resident_bytes: RSS."""

    descriptors: int
    threads: int
    shared_bytes: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Now. Raises FileNotFoundError when there is no such process."""
        process = Path("/proc") / str(pid)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            shared_bytes=sum(_shared(line) for line in (process / "maps").read_text().splitlines()),
            resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
        )

    def lower(self, other: Footprint) -> Footprint:
        """The lower of the two in everything."""
        return Footprint(*(min(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def _shared(line: str) -> int:
    """Bytes of a line of /proc/PID/maps if it is a shared mapping of memory (memfd, /dev/shm), else 0."""
    fields = line.split(maxsplit=5)
    name = fields[5] if len(fields) > 5 else ""
    if fields[1][3] != "s" or not name.startswith(("/memfd:", "/dev/shm/", "/dev/zero")):
        return 0
    begin, end = (int(address, 16) for address in fields[0].split("-"))
    return end - begin


def measure(
    directory: Path, training: Training, cluster: Cluster, failovers: int, seed: int, say: Say
) -> dict[str, Any]:
    """Survivors' and supervisors' footprints after two failovers and after `failovers`, each at its lowest within a few
    iterations. Raises JobFailed.

    The last rank of every node dies in turns; the others and the agents live on. The job is stopped, not finished.
    """
    per_node = cluster.ranks // cluster.nodes
    victims = [node * per_node + per_node - 1 for node in range(cluster.nodes)]
    with Job(directory, fftrain_command(directory, training, cluster, EVERY)) as job:
        assassin = Assassin(job, cluster, victims, random.Random(seed), say)
        early: dict[str, Footprint] = {}
        for number in range(1, failovers + 1):
            assassin.kill()
            if number == 2:
                assassin.settle()
                early = _footprints(job, assassin.watch, victims)
        assassin.settle()
        late = _footprints(job, assassin.watch, victims)
    return compare(early, late, failovers)


def _footprints(job: Job, watch: Watch, victims: list[int]) -> dict[str, Footprint]:
    pids = {f"rank {rank}": pid for rank, pid in sorted(watch.pids.items()) if rank not in victims}
    pids |= {f"agent {node}": pid for node, pid in sorted(watch.agents.items())}
    pids["controller"] = job.process.pid
    lowest = {name: Footprint.of(pid) for name, pid in pids.items()}
    end = time.monotonic() + _SAMPLED_S
    while time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        lowest = {name: lowest[name].lower(Footprint.of(pid)) for name, pid in pids.items()}
    return lowest


def compare(early: dict[str, Footprint], late: dict[str, Footprint], failovers: int) -> dict[str, Any]:
    """The "leak" part of the results; "grown" lists what is more than 5 % above what it was after two."""
    grown = []
    for name, footprint in late.items():
        before = asdict(early[name])
        for what, value in asdict(footprint).items():
            if value > before[what] * (1 + _ALLOWED) + _SLACK[what]:
                grown.append(f"{name}: {what} {before[what]} -> {value}")
    return {
        "failovers": failovers,
        "after_two": {name: asdict(footprint) for name, footprint in early.items()},
        "after_all": {name: asdict(footprint) for name, footprint in late.items()},
        "grown": grown,
        "within_5_percent": not grown,
    }
