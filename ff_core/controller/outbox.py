"""Where the controller's decisions go. `service.Service` is one, tests have others."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol


class Outbox(Protocol):
    """Messages, events, words for the person watching, and the time."""

    @abstractmethod
    def send(self, node: int, name: str, **fields: Any) -> None:
        """A message to the agent of `node`."""

    @abstractmethod
    def emit(self, kind: str, **fields: Any) -> None:
        """A line for events.jsonl."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A line for the person watching."""

    @abstractmethod
    def finish(self, code: int, summary: str) -> None:
        """The job is over; agents must be stopped. `summary` is the last thing a person reads (may hold a
        traceback)."""

    @abstractmethod
    def fenced(self, reason: str) -> None:
        """Another controller may have the job: agents must end their workers, and nothing more is said to them."""

    @abstractmethod
    def abandon(self, node: int) -> None:
        """The node counts as lost: whatever of it still runs, frozen perhaps, must not go on as if it belonged to the
        job."""

    @abstractmethod
    def now(self) -> float:
        """Wall clock, seconds."""
