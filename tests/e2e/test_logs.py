"""A file that the script appends to: lines of iterations that did not count are in it, and are told from the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import fftrain, uninterrupted

SCRIPT = str(Path(__file__).with_name("logs.py"))
KILLS = ("--inject", "kill rank=1 iteration=4 at=step", "--inject", "kill rank=0 iteration=7 at=step")


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"result.rank{rank}.jsonl").read_text().splitlines()]


def read(folder: Path, rank: int) -> dict[int, Any]:
    """As docs/what-is-protected.md says: the last line of a step counts."""
    return {line["step"]: line for line in lines(folder, rank)}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--usual", "--writes"),
        pytest.param(("--usual",), marks=pytest.mark.slow),
        pytest.param(("--usual", "--ahead"), marks=pytest.mark.slow),
        pytest.param(("--usual", "--ahead", "--writes"), marks=pytest.mark.slow),
    ],
)
def test_the_last_line_of_a_step_counts(tmp_path: Path, words: tuple[str, ...]) -> None:
    job = fftrain(tmp_path, [SCRIPT, *words, "--result", str(tmp_path / "result.json")], *KILLS, ranks=2)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) >= 2  # fetched ahead and written into: a survivor is replaced, too
    right = uninterrupted(SCRIPT, words, lambda folder: ["--result", str(folder / "result.json")], ranks=2)
    for rank in range(2):
        assert read(tmp_path, rank) == read(right, rank)
        assert len(lines(right, rank)) == 20
    assert len(lines(tmp_path, 1)) > 20, "or there is nothing to tell apart"
