"""Event logs of made-up jobs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ff_core.observe.events import EventLog

T0 = 1_700_000_000.0
PHASES = {"detect": 0.05, "halt": 0.02, "verdict": 0.01, "join": 0.1, "regroup": 0.03, "restore": 0.01, "resume": 0.08}


def two_failovers(directory: Path) -> None:
    """4 ranks on 2 nodes, 40 iterations; rank 2 is replaced by a spare, later rank 0 by a cold process."""
    with EventLog(directory) as log:
        log.emit("job_start", t=T0, world_size=4, nodes=2, emulated=True, entrypoint=["train.py"])
        for rank in range(4):
            log.emit("worker_start", t=T0 + 0.1, rank=rank, pid=100 + rank, node=rank // 2, warm=False, epoch=0)
        log.emit("training_start", t=T0 + 4, coverage="protected against the loss of 1 node at a time")
        log.emit("interval", t=T0 + 4, version=0, interval=1, was=1, most_lost=1, why="as measured")
        log.emit("interval", t=T0 + 5, version=12, interval=4, was=1, most_lost=7, why="at 1 copying stops rank 2")
        for version in range(41):
            log.emit("commit", t=T0 + 4 + 0.2 * version, W=version, epoch=0)
        for epoch, rank, warm, at in ((1, 2, True, 6.0), (2, 0, False, 9.0)):
            log.emit("injection", t=T0 + at, rank=rank, id=epoch, action="kill", iteration=10, at=T0 + at)
            log.emit("worker_exit", t=T0 + at + 0.01, rank=rank, code=-9, at=T0 + at)
            log.emit("worker_start", t=T0 + at + 0.1, rank=rank, pid=200 + rank, node=1, warm=warm, epoch=epoch)
            log.emit(
                "failover", t=T0 + at + 0.3, epoch=epoch, v_star=10 * epoch, dead=[rank], newcomers=[rank], attempts=1,
                cause=f"rank {rank} was killed by signal 9", spare="warm" if warm else "cold", phases=PHASES,
                bytes={"restored": 15 << 20}, total_s=0.3, died_at=T0 + at,
            )  # fmt: skip
        for rank in range(4):
            log.emit("rank_stats", t=T0 + 12, rank=rank, versions=41, lost_ms_median=1.25, bytes_sent=1 << 30)
            log.emit("worker_exit", t=T0 + 13, rank=rank, code=0, at=T0 + 13)
        log.emit("job_end", t=T0 + 13.1, code=0, summary="")
    with (directory / "losses.jsonl").open("w") as file:
        for step in [*range(1, 12), *range(11, 41)]:  # step 11 twice: lines are at-least-once
            file.write(json.dumps({"step": step, "loss": 5 * math.exp(-step / 20)}) + "\n")


def failed_at_once(directory: Path) -> None:
    """1 rank, no training, a summary full of characters that HTML gives a meaning."""
    with EventLog(directory) as log:
        log.emit("job_start", t=T0, world_size=1, nodes=1)
        log.emit("worker_start", t=T0 + 1, rank=0, pid=7, node=0, warm=False, restart=0, epoch=0)
        log.emit("worker_exit", t=T0 + 2, rank=0, code=1, at=T0 + 2)
        log.emit("job_end", t=T0 + 2, code=1, summary="Traceback: <module> & \"x\" </script>")
