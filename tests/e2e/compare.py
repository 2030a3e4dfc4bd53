"""Results of a training job, rank by rank, and their comparison to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.jobs import Job


def results(out: Path, ranks: int = 4) -> dict[int, Any]:
    """What the training script wrote to --result OUT/result.json: hashes, and the losses of the steps it has seen."""
    return {rank: json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(ranks)}


def injections(*kills: str) -> list[str]:
    """Options of `fftrain run` for kills "RANK ITERATION POINT", where a point may be "random seed=7"."""
    texts = ["kill rank={} iteration={} at={}".format(*kill.split(maxsplit=2)) for kill in kills]
    return [word for text in texts for word in ("--inject", text)]


def assert_same(job: Job, wanted: dict[int, Any]) -> None:
    """The job ended well, and every rank with what `wanted` says."""
    assert job.code == 0, job.stderr[-4000:]
    ours = results(job.out, len(wanted))
    for rank, theirs in wanted.items():
        for key, value in theirs.items():
            if key != "losses":
                assert ours[rank][key] == value, f"rank {rank}: {key} differs"
        # a replaced rank knows the losses since it came; the others all of them
        losses = ours[rank]["losses"]
        assert losses and all(theirs["losses"][step] == loss for step, loss in losses.items())
