"""Whether jobs of worker.py ended alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Ranks = Sequence[dict[str, Any]]


def are_the_same(jobs: Sequence[Ranks], references: Sequence[Ranks], *, recovered: int) -> None:
    """To the bit, on every rank. recovered: how often each rank of `jobs` was."""
    for job, reference in zip(jobs, references, strict=True):
        for got, wanted in zip(job, reference, strict=True):
            assert len(got["recovered"]) == recovered
            assert got["digest"] == wanted["digest"]
            assert got["losses"] == wanted["losses"]
