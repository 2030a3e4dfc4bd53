"""A job that goes on from a version on disk: the part of the controller that begins it.

Every rank begins as a replacement does. The agents load the version into the slots of the ranks' own arenas; then a
failover begins in which all ranks are dead, and those slots are what it finds. There is no other way to begin from a
version. Rules: docs/persist.md.
"""

from __future__ import annotations

from collections.abc import Callable

from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import Found, Manifest
from ff_core.controller.state import JobControl, JobState

#: What is on disk: find(job, directory). Raises ConfigError if the job must not begin.
Find = Callable[[JobSpec, str], Found]


class Resuming:
    """Of one start of the script. find: see Find."""

    def __init__(self, state: JobState, control: JobControl, find: Find) -> None:
        self._state, self._control, self._out, self._find = state, control, state.out, find
        self._candidates: list[Manifest] = []
        self._loading: set[int] = set()  # nodes that have not answered
        self._problems: list[str] = []

    def look(self, *, anew: bool) -> Settings | None:
        """Whether the start that is about to be made goes on from a version: then the settings that it has, and layouts
        and kinds of state are known. None: the script begins by itself. anew: it shall.

        Raises ConfigError if there is a version that is not this job's, or none that is whole.
        """
        state = self._state
        directory = state.config.persist_dir
        if not directory:
            return None
        found = self._find(state.job, directory)
        state.serial = max(state.serial, found.serial)
        for note in found.notes:
            self._out.say(note)
        self._candidates = [] if anew else list(found.usable)
        if not self._candidates:
            return None
        return self._choose()

    def _choose(self) -> Settings:
        state = self._state
        chosen = state.resuming = self._candidates.pop(0)
        state.kept = f"{state.config.persist_dir}/{chosen.id}", chosen.version
        state.begun_from = chosen.version
        state.constants = dict(chosen.constants)
        kinds = state.kinds
        kinds.frozen, kinds.on_device = set(chosen.frozen), chosen.on_device
        kinds.has_constant = bool(kinds.frozen)
        kinds.groups = {frozenset(group) for group in chosen.groups}
        for number, layout in chosen.layouts.items():
            state.members.ranks[number].layout = dict(layout)
            state.members.ranks[number].training = True
        now, then = Settings.from_wire(state.job.config), Settings.from_wire(chosen.settings)
        return then.replaced_by(now)

    def load(self) -> None:
        """The arenas are there: agents fill the slots."""
        state = self._state
        chosen = state.resuming
        assert chosen is not None
        self._out.say(f"the job goes on after iteration {chosen.version}, from {state.config.persist_dir}/{chosen.id}")
        self._loading, self._problems = set(), []
        for node in state.members.live_nodes():
            parts = {r.rank: chosen.ranks[r.rank] for r in state.members.on_node(node)}
            if parts:
                self._loading.add(node)
                ranks = {rank: [part.file, part.size] for rank, part in parts.items()}
                self._out.send(node, "persist_load", id=chosen.id, epoch=state.epoch, ranks=ranks)

    def on_persist_loaded(self, node: int, id: str, epoch: int, reasons: dict[int, str]) -> None:
        """A node has its ranks' state, or says what is damaged."""
        state = self._state
        chosen = state.resuming
        if chosen is None or (chosen.id, state.epoch) != (id, epoch) or node not in self._loading:
            return
        self._loading.remove(node)
        self._problems += [f"rank {rank}: {reason}" for rank, reason in reasons.items()]
        if self._loading:
            return
        if self._problems:
            self._pass_over(chosen)
            return
        state.is_protecting = True
        self._out.emit("resume", version=chosen.version, path=f"{state.config.persist_dir}/{chosen.id}")
        self._out.emit("training_start", coverage=state.coverage)
        cause = f"the job goes on from {chosen.id}"
        self._control.begin_failover(set(state.members.ranks), cause, self._out.now())

    def _pass_over(self, chosen: Manifest) -> None:
        directory = self._state.config.persist_dir
        text = f"{directory}/{chosen.id} is damaged: {'; '.join(self._problems)}"
        if not self._candidates:
            self._control.finish(
                1,
                f"{text}. There is no older version in persist_dir that the job can go on from. To begin anew, give "
                f"another persist_dir, or remove {directory}/version-*",
            )
            return
        self._out.say(f"{text}; it is passed over")
        self._choose()
        self.load()
