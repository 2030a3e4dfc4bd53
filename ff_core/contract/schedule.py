"""Which versions are copied: what all ranks and the controller agree on (docs/protocol.md, section 3).

In an epoch copied versions follow each other at intervals that may change. The interval from a copied version to the
one after it is known to a rank before it makes the first of the two.
"""

from __future__ import annotations

#: The longest interval that is chosen by itself. What is kept to repeat iterations grows with it.
MOST = 16
#: Copied versions that count: while W = u slots hold u and its neighbour on one side.
KEPT = 3


def most_lost(interval: int, *, strict: bool) -> int:
    """Finished iterations that a death costs at most, besides the one that runs."""
    return interval if strict else 2 * interval - 1


class CopySchedule:
    """One rank's, or the controller's, which has none of its own versions but W. next: the next version to be copied.

    One thread changes it; another one may ask is_copied().
    """

    def __init__(self) -> None:
        self.next = -1
        self._then = 1
        self._copied: tuple[int, ...] = ()

    def begin_epoch(self, version: int, interval: int) -> None:
        """The epoch's first copied version, and how many iterations later the next one comes."""
        self._copied = (*(v for v in self._copied if v < version), version)[-KEPT:]
        self.next, self._then = version + interval, interval

    def after_next(self, interval: int) -> None:
        """So many iterations come from `next` to the version that follows it. Said when W has reached the version
        before `next`."""
        self._then = interval

    def copied(self, version: int) -> None:
        """The copy of `version` has begun; in the controller: is committed everywhere."""
        self._copied = (*self._copied, version)[-KEPT:]
        if version == self.next:
            self.next = version + self._then

    def left(self, version: int) -> None:
        """Every rank has left the loop with `version`, which is committed. The first version of another loop is copied,
        whatever the interval: until it is committed, the job is not protected."""
        self.next = version + 1

    def is_copied(self, version: int) -> bool:
        """Whether `version` was copied. Known of the newest ones, which is all that live tensors can be at."""
        return version in self._copied

    def before(self, committed: int) -> int:
        """The copied version before `committed` (W): no verdict goes back behind it. -1: none is known."""
        return max((v for v in self._copied if v < committed), default=-1)

    @property
    def limit(self) -> int:
        """No rank makes this version before W has reached `next`."""
        return self.next + self._then
