"""Processes that end: what the controller makes of the end of a worker.

A killed one is heard of twice: it is *dying* as soon as its own code runs no more, and *exits* when the kernel is
through with it and the way it died is known. The failover begins with the first; the second is no second death.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ff_core.controller.membership import Rank

if TYPE_CHECKING:
    from ff_core.controller.controller import Controller


class Deaths:
    """Of one start of the script on all ranks.

    kill_times: rank -> when an injected fault was about to kill it, wall-clock seconds.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.members, self.out = controller.members, controller.out
        self.kill_times: dict[int, float] = {}
        self.dying: dict[str, tuple[int, int]] = {}  # uid -> rank, iteration as far as known; its exit is still to come

    def on_worker_dying(self, node: int, rank: int, uid: str, at: float) -> None:
        """Its end has begun: what need not wait is done now. `worker_exit` follows and says the rest."""
        entry = self.members.by_uid(uid)
        if entry is None or entry.rank != rank or not self.controller.protected or self.controller.loop_end.has_left():
            return
        self.dying[uid] = rank, self._iteration_of(entry, -1)
        entry.alive, entry.leaving = False, None
        self.controller.failovers.begin({rank}, f"rank {rank} died", min(at, self.kill_times.pop(rank, at)))

    def on_worker_exit(self, node: int, rank: int, uid: str, code: int, tail: str, sealed: int, at: float) -> None:
        if uid in self.dying:
            self._end_of_dying(uid, code, tail, sealed, at)
            return
        entry = self.members.by_uid(uid)
        if entry is None or entry.rank != rank or entry.exited:
            return
        entry.tail = tail
        self.out.emit("worker_exit", rank=entry.rank, code=code, at=at)
        if code == 0:
            self._exited_cleanly(entry)
            return
        at = min(at, self.kill_times.pop(entry.rank, at))
        cause = _how(rank, code)
        entry.alive, entry.leaving = False, None
        self._count_death(entry, cause, self._iteration_of(entry, sealed))
        if not self.controller.finished:
            self.happened({entry.rank}, cause, at)

    def _end_of_dying(self, uid: str, code: int, tail: str, sealed: int, at: float) -> None:
        """The failover for it is under way, and its rank is somebody else's by now."""
        rank, iteration = self.dying.pop(uid)
        entry = self.members.ranks[rank]
        entry.tail = tail
        self.out.emit("worker_exit", rank=rank, code=code, at=at)
        if code == 0:
            self._left_early(rank)
            return
        cause = _how(rank, code)
        self.controller.failovers.explain(f"rank {rank} died", cause)
        self._count_death(entry, cause, max(iteration, sealed + 1))

    def _exited_cleanly(self, entry: Rank) -> None:
        entry.alive = False
        if self.controller.protected and self.controller.loop_end.left_version is None:
            self._left_early(entry.rank)
            return
        entry.exited = True
        if all(rank.exited for rank in self.members.ranks.values()):
            self.controller.finish(0, "")

    def _left_early(self, rank: int) -> None:
        self.controller.finish(
            1,
            f"rank {rank} exited with code 0 before training had ended on every rank; "
            "a script must leave its training loop on all ranks together",
        )

    def _iteration_of(self, rank: Rank, sealed: int) -> int:
        """The iteration a rank died in: one after its last sealed version, or after v* for a newcomer that never
        sealed."""
        current = self.controller.failovers.round
        base = current.version if current is not None and not rank.restored else self.controller.w
        return max(sealed, base, rank.committed[1]) + 1

    def _count_death(self, rank: Rank, cause: str, iteration: int) -> None:
        rank.failures[iteration] = rank.failures.get(iteration, 0) + 1
        if self.controller.protected and rank.failures[iteration] >= 2:
            self.controller.finish(
                1,
                f"{cause}; it failed twice in iteration {iteration}: not a hardware failure. "
                f"Its last words:\n{rank.tail}",
            )

    def happened(self, dead: set[int], cause: str, at: float) -> None:
        """`dead` ranks are without a process: a failover, or if there can be none the script starts again."""
        if not self.controller.protected:
            self.controller.restart_job(f"{cause} before training was protected", dead)
        elif self.controller.loop_end.has_left():
            self.controller.restart_job(f"{cause} after the training loop had ended on every rank", dead)
        else:
            self.controller.failovers.begin(dead, cause, at)


def _how(rank: int, code: int) -> str:
    return f"rank {rank} was killed by signal {-code}" if code < 0 else f"rank {rank} exited with code {code}"
