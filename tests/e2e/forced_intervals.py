"""`fftrain` with a controller that takes intervals from a list in turns, whenever W rises, whatever ranks measure.

python forced_intervals.py 3,1,2 run ...
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from ff_core.controller import copying
from ff_core.launch import cli

SEQUENCE = [int(word) for word in sys.argv.pop(1).split(",")]


class Forced:
    """Stands in for `ff_core.controller.interval_choice.IntervalChoice`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.interval = 1
        self._turns = itertools.cycle(SEQUENCE)

    def measured(self, *_: Any) -> None:
        pass

    def forget(self) -> None:
        pass

    def choose(self) -> None:
        self.interval = next(self._turns)


if __name__ == "__main__":
    copying.IntervalChoice = Forced  # type: ignore[assignment,misc]
    sys.exit(cli.main())
