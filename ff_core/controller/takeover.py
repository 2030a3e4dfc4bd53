"""A controller that takes over: a job's state from the record and from what its agents say, and the first halt.

Whatever was under way is not gone on with: it begins with an ordinary failover, in a term of its own. The rules are in
docs/protocol.md, section 8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.contract.terms import EPOCHS_A_TERM
from ff_core.controller.controller import Controller
from ff_core.controller.election import Joined
from ff_core.controller.failover_round import FailoverRound
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from ff_core.controller.record import Record
from ff_core.controller.resuming import Find
from ff_core.controller.state import JobState
from ff_core.errors import ConfigError

#: Versions on disk whose numbers are passed over: the controller before may have begun some.
_PASSED_OVER = 1000


class Takeover:
    """controller: the job's from now on; nobody has heard of it before begin()."""

    def __init__(
        self, out: Outbox, find: Find, joined: Mapping[int, Joined], record: Record, died_at: float, home: int,
        dead: Collection[int],
    ) -> None:  # fmt: skip
        """joined: nodes of the record.  record: the newest.  home: the node of them that has this controller.
        dead: nodes that are proven so; others that have not joined are silent.
        died_at: when the controller before was lost, wall clock, seconds."""
        settings = Settings.from_wire(record.settings)
        self.controller = Controller(JobSpec.from_wire(record.job), settings.config, out, find)
        self._out, self._died_at, state = out, died_at, self.controller.state
        state.settings, state.is_protecting = settings, True
        state.may_restart = False  # the environment of its workers names the store that is gone
        state.home = home
        record.put_into(state)
        self.controller.preload = record.preload or None
        self.controller.copying.settle()
        self.controller.startup.goes_on(settings)
        _look_at_disk(state, find)
        for number in sorted(joined):
            joined[number].node.spares = dict(joined[number].spares)
        state.members.nodes = {number: _node(number, joined, record) for number in sorted(record.machines)}
        self._superseded = _seat(state, joined)
        self._lost = sorted(record.places.keys() - joined.keys())
        self._homes = record.homes
        settled = max((one.verdict for one in joined.values()), key=lambda verdict: verdict[1:])
        newest = max(max(one.epoch, one.halt_epoch) for one in joined.values())
        # The one before may have taken over, and died before anybody heard of an epoch of its.
        state.epoch = max(newest // EPOCHS_A_TERM + 1, *(one.term for one in joined.values())) * EPOCHS_A_TERM - 1
        self._dead = state.quorum.dead = {*dead}
        number, term = max(one.number for one in joined.values()), (state.epoch + 1) // EPOCHS_A_TERM
        self.controller.succession.takes_over(number, term, [*record.elders, record.places])
        # As if a halt were under way: whose slots count is known already.
        state.round = FailoverRound(
            epoch=state.epoch, old_epoch=settled[1], dead=set(), cause="", died_at=died_at,
            detected_at=out.now(), attempts=0, settled=settled,
        )  # fmt: skip

    @property
    def _cause(self) -> str:
        nodes = f"node{'s' if len(self._lost) > 1 else ''} {', '.join(map(str, self._lost))}"
        return f"{nodes} lost, with the controller"

    def begin(self) -> None:
        """The first halt."""
        out, state = self._out, self.controller.state
        for number in self._lost:
            ranks = [rank for rank, home in self._homes.items() if home == number]
            reason = "its launcher is gone" if number in self._dead else "it is silent"
            out.emit("node_lost", node=number, reason=reason, ranks=ranks)
        out.emit("takeover", node=state.home, lost=self._lost, epoch=state.epoch + 1)
        out.say(f"{self._cause}; the controller is on node {state.home} from now on")
        self.controller.succession.tell()  # before all else: whoever comes after this one needs it
        self.controller.begin_failover(state.members.absent(), self._cause, self._died_at)
        for node, rank in self._superseded:
            out.send(node, "fail_worker", rank=rank, reason="its rank is played elsewhere")
        self.controller.succession.look()


def _node(number: int, joined: Mapping[int, Joined], record: Record) -> Node:
    """A lost one is known, too: who shares its machine can take its ranks."""
    if number in joined:
        return joined[number].node
    host_id, hostname = record.machines[number]
    return Node(number, host_id, hostname, ("", 0), free_bytes=0, last_beat=0.0, alive=False)


def _seat(state: JobState, joined: Mapping[int, Joined]) -> list[tuple[int, int]]:
    """Who plays which rank. Of two the one with the later role: returns (node, rank) of the others."""
    playing: dict[int, list[tuple[int, int, str, bool]]] = {}
    for node, one in joined.items():
        for rank, uid, epoch, restored in one.ranks:
            playing.setdefault(rank, []).append((epoch, node, uid, restored))
    superseded = []
    for number, rank in state.members.ranks.items():
        found: Sequence[tuple[int, int, str, bool]] = sorted(playing.get(number, ()))
        if found:
            _, rank.node, rank.uid, rank.restored = found[-1]
        else:
            rank.restored = False
        rank.alive = bool(found)
        superseded += [(node, number) for _, node, _, _ in found[:-1]]
    return superseded


def _look_at_disk(state: JobState, find: Find) -> None:
    """Versions that are complete, whoever has ordered them."""
    if not state.config.persist_dir:
        return
    try:
        found = find(state.job, state.config.persist_dir)
    except ConfigError as error:
        state.out.say(f"{state.config.persist_dir}: {error}")
        return
    state.serial = max(state.serial, found.serial) + _PASSED_OVER
    if found.usable:
        state.kept = f"{state.config.persist_dir}/{found.usable[0].id}", found.usable[0].version
