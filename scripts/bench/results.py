"""Whether two jobs computed the same, to the bit: losses of every step; parameters, optimizer, RNG of every rank."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

HASHES = {"parameters_sha256": "parameters", "optimizer_sha256": "optimizer state", "rng_sha256": "random numbers"}


def load_results(directory: Path) -> dict[int, dict[str, Any]]:
    """rank -> what scripts/train_gpt.py wrote to directory/result.rankR.json."""
    results = [json.loads(path.read_text()) for path in directory.glob("result.rank*.json")]
    return {result["rank"]: result for result in results}


def load_losses(directory: Path) -> dict[int, set[float]]:
    """step -> every loss that was logged for it. A repeated iteration logs its loss again; it must be the same one."""
    losses: dict[int, set[float]] = defaultdict(set)
    path = directory / "losses.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
            losses[fields["step"]].add(fields["loss"])
        except ValueError:
            continue  # its writer was killed
    return dict(losses)


def differences(directory: Path, reference: Path, ranks: int) -> list[str]:
    """What the job in `directory` computed differently from the one in `reference`, a line each; empty: nothing."""
    ours, theirs = load_results(directory), load_results(reference)
    lines = []
    for rank in range(ranks):
        if rank not in ours or rank not in theirs:
            where = directory if rank not in ours else reference
            lines.append(f"rank {rank} left no result in {where}")
            continue
        if ours[rank]["steps"] != theirs[rank]["steps"]:
            lines.append(f"rank {rank} made {ours[rank]['steps']} steps instead of {theirs[rank]['steps']}")
        for key, words in HASHES.items():
            if ours[rank][key] != theirs[rank][key]:
                lines.append(f"rank {rank}: {words} {ours[rank][key][:16]} instead of {theirs[rank][key][:16]}")
        # A replacement knows the losses of the steps that it has made itself.
        for step, loss in ours[rank]["losses"].items():
            if loss != theirs[rank]["losses"].get(step):
                lines.append(f"rank {rank}, step {step}: loss {loss!r} instead of {theirs[rank]['losses'].get(step)!r}")
    logged, expected = load_losses(directory), load_losses(reference)
    if not expected:
        lines.append(f"no losses in {reference}")
    for step in sorted(logged.keys() | expected.keys()):
        if logged.get(step) != expected.get(step):
            lines.append(
                f"step {step}: logged losses {_words(logged.get(step))} instead of {_words(expected.get(step))}"
            )
    return lines


def _words(losses: set[float] | None) -> str:
    return " and ".join(map(repr, sorted(losses))) if losses else "none"
