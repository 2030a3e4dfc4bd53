"""Faults that the user asked for (`fftrain run --inject`), in the process that they happen in."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ff_core.contract.inject import InjectionPoints, parse

if TYPE_CHECKING:
    from ff_core.contract.link import WorkerLink
    from ff_core.worker.inbox import Inbox

_CONFIRM_S = 10.0


class Faults:
    """Of one rank. Each is reported before it happens, so that it happens once per job and not in every replacement.

    injections: (number in the job, text) of those that have not fired.
    """

    def __init__(self, link: WorkerLink, inbox: Inbox, rank: int, injections: Sequence[tuple[int, str]]) -> None:
        self._link, self._inbox, self._rank = link, inbox, rank
        parsed = [parse(text, number) for number, text in injections]
        self._actions = {injection.id: injection.action for injection in parsed}
        self._points = InjectionPoints(rank, parsed, self._report)

    def point(self, at: str, iteration: int) -> None:
        """Training has reached the point `at` of `iteration`: what is due happens here."""
        self._points.point(at, iteration)

    def _report(self, number: int) -> None:
        self._link.send("inject_fired", rank=self._rank, id=number, at=time.time(), action=self._actions[number])
        try:
            self._inbox.take("inject_ack", lambda m: m["id"] == number, lambda: None, timeout_s=_CONFIRM_S)
        except TimeoutError:
            print(
                f"fftrain: rank {self._rank}: injection {number} was not confirmed; it happens all the same",
                file=sys.stderr,
            )
