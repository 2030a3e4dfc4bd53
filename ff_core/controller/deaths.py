"""Processes that end: what the controller makes of the end of a worker.

A killed one is heard of twice. It is *dying* as soon as its own code runs no more. It *exits* when the kernel is
through with it and the way it died is known. The failover begins with the first; the second is no second death.
"""

from __future__ import annotations

from ff_core.controller.membership import Rank
from ff_core.controller.state import JobControl, JobState

#: Deaths of a rank in the same iteration that end the job: by a fault of its own, by somebody's SIGKILL.
_FAILURES, _KILLS = 2, 4


class Deaths:
    """Of one start of the script on all ranks."""

    def __init__(self, state: JobState, control: JobControl) -> None:
        self._state, self._control = state, control
        self.members, self.out = state.members, state.out
        self.dying: dict[str, tuple[int, int]] = {}  # uid -> rank, iteration as far as known; its exit is still to come
        self._behind: dict[str, tuple[int, int, float]] = {}  # uid -> node, rank, when: of those dying behind a loop

    def on_worker_dying(self, node: int, rank: int, uid: str, at: float) -> None:
        """Its end has begun: what need not wait is done now. `worker_exit` follows and says the rest."""
        entry = self.members.by_uid(uid)
        if entry is None or entry.rank != rank or not self._state.is_protecting:
            return
        if self._state.has_left():  # a script may end in ways that nobody expects: only its exit says
            self._behind[uid] = node, rank, at
            return
        self.dying[uid] = rank, self._iteration_of(entry, -1)
        entry.alive, entry.leaving = False, None
        self._control.begin_failover({rank}, f"rank {rank} died", min(at, self._state.kill_times.pop(rank, at)))

    def w_rose(self) -> None:
        """A loop may have begun meanwhile. Who was dying before has not lived to see it, and its exit may not come."""
        if not self._state.has_left():
            behind, self._behind = self._behind, {}
            for uid, (node, rank, at) in behind.items():
                self.on_worker_dying(node, rank, uid, at)

    def on_worker_exit(
        self, node: int, rank: int, uid: str, code: int, tail: str, sealed: int, at: float, kernel: str = ""
    ) -> None:  # fmt: skip
        """kernel: what the kernel has said of it."""
        self._behind.pop(uid, None)
        if uid in self.dying:
            self._end_of_dying(uid, code, tail, sealed, at, kernel)
            return
        entry = self.members.by_uid(uid)
        if entry is None or entry.rank != rank or entry.exited:
            return
        entry.tail = tail
        self.out.emit("worker_exit", rank=entry.rank, code=code, at=at, kernel=kernel)
        if code == 0:
            self._exited_cleanly(entry)
            return
        at = min(at, self._state.kill_times.pop(entry.rank, at))
        cause = _how(rank, code, kernel)
        entry.alive, entry.leaving = False, None
        self._count_death(entry, cause, self._iteration_of(entry, sealed), killed=code == -9 and not kernel)
        if not self._state.finished:
            self.happened({entry.rank}, cause, at)

    def _end_of_dying(self, uid: str, code: int, tail: str, sealed: int, at: float, kernel: str) -> None:
        """The failover for it is under way, and its rank is somebody else's by now."""
        rank, iteration = self.dying.pop(uid)
        entry = self.members.ranks[rank]
        entry.tail = tail
        self.out.emit("worker_exit", rank=rank, code=code, at=at, kernel=kernel)
        if code == 0:
            self._left_early(rank)
            return
        cause = _how(rank, code, kernel)
        if self._state.round is not None:
            self._state.round.explain(f"rank {rank} died", cause)
        self._count_death(entry, cause, max(iteration, sealed + 1), killed=code == -9 and not kernel)

    def _exited_cleanly(self, entry: Rank) -> None:
        entry.alive = False
        if self._state.is_protecting and self._state.left_version is None:
            self._left_early(entry.rank)
            return
        entry.exited = True
        if all(rank.exited for rank in self.members.ranks.values()):
            self._control.finish(0, "")

    def _left_early(self, rank: int) -> None:
        self._control.finish(
            1,
            f"rank {rank} exited with code 0 before training had ended on every rank; "
            "a script must leave its training loop on all ranks together",
        )

    def _iteration_of(self, rank: Rank, sealed: int) -> int:
        """The iteration a rank died in: one after its last sealed version, or after v* for a newcomer that never
        sealed."""
        current = self._state.round
        base = current.version if current is not None and not rank.restored else self._state.w
        return max(sealed, base, rank.committed[1]) + 1

    def _count_death(self, rank: Rank, cause: str, iteration: int, *, killed: bool) -> None:
        """killed: by SIGKILL, and the kernel says nothing of it. Nobody kills himself so: somebody else has done it."""
        deaths = rank.failures.setdefault(iteration, [0, 0])
        deaths[not killed] += 1
        if not self._state.is_protecting or (deaths[1] < _FAILURES and deaths[0] < _KILLS):
            return
        how = "it failed twice" if deaths[1] >= _FAILURES else f"it was killed {deaths[0]} times"
        text = f"{cause}; {how} in iteration {iteration}: not a hardware failure. Its last words:\n{rank.tail}"
        self._control.finish(1, text)

    def happened(self, dead: set[int], cause: str, at: float) -> None:
        """`dead` ranks are without a process: a failover, or if there can be none the script starts again. Between two
        loops all go back to the end of the first, if they can."""
        if not self._state.is_protecting:
            self._control.restart_job(f"{cause} before training was protected", dead)
        elif self._state.has_left():
            self._control.go_back(dead, cause, at)
        else:
            self._control.begin_failover(dead, cause, at)


def _how(rank: int, code: int, kernel: str) -> str:
    how = f"rank {rank} was killed by signal {-code}" if code < 0 else f"rank {rank} exited with code {code}"
    return f"{how} (the kernel: {kernel})" if kernel else how
