"""Weights of a loss that depend on how many iterations there were: ways in which scripts count, and what comes of it.

| way | after a failure |
| --- | --- |
| generator | refused by name: nobody can set how far it has come |
| idle | the same, though the loss does not depend on it |
| registered | goes on: FFTrainer saves the count |
| known | goes on: the framework's own count |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ff_core

WAYS = ("generator", "idle", "registered", "known")


def weights() -> Iterator[float]:
    for number in itertools.count():
        yield 1 + number / 100


class Registered:
    """Weights whose place is saved."""

    def __init__(self) -> None:
        self.load_state_dict({"made": 0})

    def __next__(self) -> float:
        self.made += 1
        return next(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]
        self._weights = itertools.islice(weights(), self.made, None)


def made(way: str | None, known: Callable[[], int]) -> Callable[[], float]:
    """Gives the weight of the next micro-batch. known: the framework's count."""
    if way is None:
        return lambda: 1.0
    if way == "known":
        return lambda: 1 + known() / 100
    if way == "registered":
        registered = Registered()
        ff_core.register_state("weights of the loss", registered)
        return lambda: next(registered)
    counted = weights()
    return lambda: next(counted) if way == "generator" else min(next(counted), 1.0)
