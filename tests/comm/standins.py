"""What stands in for the registry of groups where a test needs an era and no groups."""

from __future__ import annotations

from typing import Any

from ff_core.comm.cut import Cut
from ff_core.comm.era import Era
from ff_core.errors import FailoverInterrupt
from tests.comm.harness import Host


class StandinEra(Era):
    """Begins connected, in epoch 0. host: nobody is asked for a verdict longer than it says."""

    cut: Any = None
    host: Any = None
    solo: Any = False
    noted: Any = None

    def __init__(self, host: Any = None) -> None:
        self.host, self.cut = host or Host(0, 0, 0.0), Cut()
        self._halted: int | None = None

    @property
    def over(self) -> bool:
        return self._halted is not None

    def epoch(self) -> int:
        return 0

    def halt(self, epoch: int) -> None:
        self._halted = epoch
        self.cut.made()

    def interrupt(self) -> FailoverInterrupt:
        return FailoverInterrupt(self.epoch() if self._halted is None else self._halted)

    def failed(self, error: BaseException, epoch: int | None) -> None:
        if not self.over and isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            self.host.on_failure(error, "here")
            self.noted = None
        if self.over or epoch not in (None, self.epoch()):
            raise self.interrupt()

    def note_failure(self, error: BaseException) -> None:
        self.noted = error
