"""Versions on disk: when one is written, by whom, and when it is complete. The part of the controller for that.

While the job trains a version is written now and then, from slots that W has reached; nobody waits for it. Before the
job ends for want of a node, the newest version that lies in slots is written. Rules: docs/persist.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from ff_core.contract import persisted
from ff_core.contract.persisted import Manifest, Part
from ff_core.contract.slot_report import SlotReport
from ff_core.controller.failover_round import FailoverRound
from ff_core.controller.state import JobState

#: The end of the job waits so long for its last version.
_LAST_S = 600.0


@dataclass(slots=True)
class Attempt:
    """One version on its way to disk. It is over when every node has said how its part went, or is lost.

    manifest: all but the files.  writers: rank -> node that writes it.  parts: what is written.
    began: wall clock, seconds.  sealer: the node that completes it.  problem: why it will not be complete.
    sealing: all parts are there.
    """

    manifest: Manifest
    writers: dict[int, int]
    began: float
    sealer: int
    parts: dict[int, Part] = field(default_factory=dict)
    problem: str = ""
    sealing: bool = False

    @property
    def id(self) -> str:
        return self.manifest.id


def in_slots(
    world_size: int, epoch: int, slots: Iterable[SlotReport], groups: Iterable[Set[int]], has_local: bool
) -> tuple[int, dict[int, SlotReport]] | None:
    """The newest version that slots alone can give: its number, and for each rank the slot to take.

    epoch: of the slots that count.  groups: redundancy groups, empty: all ranks are one; of each some rank must have
    its own slot if there is REPLICATED state (has_local), which replicas lack.
    """
    redundant = [frozenset(group) for group in groups] or [frozenset(range(world_size))]
    found: dict[int, dict[int, SlotReport]] = {}
    for slot in slots:
        if slot.epoch != epoch or not 0 <= slot.rank < world_size:
            continue
        best = found.setdefault(slot.version, {}).get(slot.rank)
        if best is None or _worth(slot) > _worth(best):
            found[slot.version][slot.rank] = slot
    for version in sorted(found, reverse=True):
        chosen = found[version]
        whole = {rank for rank, slot in chosen.items() if slot.kind == "own" and slot.full}
        if len(chosen) == world_size and (not has_local or all(group & whole for group in redundant)):
            return version, chosen
    return None


def _worth(slot: SlotReport) -> tuple[bool, bool, int]:
    return slot.kind == "own" and slot.full, slot.kind == "own", -slot.node


class Persisting:
    """Of the whole job, restarts included."""

    def __init__(self, state: JobState) -> None:
        self._state, self._out = state, state.out
        self._attempt: Attempt | None = None
        self._begun_at: float | None = None  # the newest one, or the first W
        self._last_wait: float | None = None  # the wait for a place after which the job ends, and when that was over
        self._last_since = 0.0
        self._failed: tuple[int, int] | None = None  # (epoch, version) of the last one that was tried for that end
        self._why = ""  # the newest one was not written
        self._line: dict[str, str] = {}

    @property
    def _directory(self) -> str:
        return self._state.config.persist_dir

    # ---- when -------------------------------------------------------------------------------------------------------

    def w_rose(self, version: int) -> None:
        """W has risen, and agents were told: its slots stay whole until W rises again."""
        state, now = self._state, self._out.now()
        interval_s = state.config.persist_interval_s
        if not self._directory or not interval_s:
            return
        if self._begun_at is None:
            self._begun_at = now
        if now - self._begun_at >= interval_s:
            self._begin_running(version)

    def stops(self) -> None:
        """A signal stops the job: what is safe now is written while the workers come to their end."""
        state = self._state
        if self._directory and state.w >= 0 and state.settled and (state.kept is None or state.kept[1] != state.w):
            self._begin_running(state.w)

    def _begin_running(self, version: int) -> None:
        """Write W, which is `version`, from the slots of ranks that train."""
        if self._attempt is None and not self._lacks_constants():
            owners = {rank.rank: (rank.node, "own") for rank in self._state.members.ranks.values()}
            self._begin(self._state.epoch, version, owners, still=False)

    def last(self, current: FailoverRound) -> str | None:
        """The job is about to end in this halt: the words for what is on disk, None while it is being written. To be
        asked again then."""
        if not self._directory:
            return ""
        now = self._out.now()
        if self._last_wait != current.waits_since:
            self._last_wait, self._last_since = current.waits_since, now
        problem = self._try_last(current) if self._attempt is None else None
        if problem is None and now - self._last_since < _LAST_S:
            return None
        if problem is None:
            problem = f"writing took longer than {_LAST_S:g} s"
        return f"the newest version in memory was not written to {self._directory}: {problem}" if problem else ""

    def _try_last(self, current: FailoverRound) -> str | None:
        """Begin to write; "" if all is on disk, else why nothing can be written. None: begun."""
        state = self._state
        if state.resuming is not None:
            return ""  # nothing has been trained yet
        local = any((rank.layout or {}).get("local_bytes", 0) for rank in state.members.ranks.values())
        found = in_slots(state.job.world_size, current.old_epoch, current.slots(), state.kinds.groups, local)
        if found is None:
            return "no version lies in slots of every rank"
        version, slots = found
        if state.kept is not None and state.kept[1] >= version:
            return ""
        if self._lacks_constants():
            return "the frozen state was not written when training began"
        if self._failed == (current.epoch, version):
            return self._why
        sources = {rank: (slot.node, slot.kind) for rank, slot in slots.items()}
        self._begin(current.old_epoch, version, sources, still=True)
        self._failed = current.epoch, version  # until it has ended well
        return None

    def _lacks_constants(self) -> bool:
        state = self._state
        return not all(map(state.constants_of, state.kinds.frozen))

    # ---- how --------------------------------------------------------------------------------------------------------

    def _begin(self, epoch: int, version: int, sources: Mapping[int, tuple[int, str]], *, still: bool) -> None:
        """sources: rank -> node and kind of arena.  still: nobody changes the slots meanwhile."""
        now = self._begun_at = self._out.now()
        writers = {rank: node for rank, (node, _) in sources.items()}
        sealer = min(self._state.members.live_nodes())
        self._attempt = Attempt(self._manifest(epoch, version), writers, now, sealer)
        self._state.serial += 1
        for node in sorted({sealer, *writers.values()}):
            ranks = {rank: kind for rank, (other, kind) in sources.items() if other == node}
            slots = {"slot_epoch": epoch, "version": version, "still": still, "seals": node == sealer}
            self._out.send(node, "persist", id=self._attempt.id, ranks=ranks, **slots)

    def on_persist_part(self, node: int, id: str, rank: int, file: str, size: int, reason: str) -> None:
        """A rank's file is written, or will not be."""
        attempt = self._attempt
        if attempt is None or attempt.id != id or attempt.writers.get(rank) != node:
            return
        del attempt.writers[rank]
        attempt.parts[rank] = Part(file, size)
        attempt.problem = attempt.problem or (f"rank {rank} on node {node}: {reason}" if reason else "")
        self._all_said(attempt)

    def _all_said(self, attempt: Attempt) -> None:
        if attempt.writers:
            return
        if attempt.problem:
            self._out.send(attempt.sealer, "persist_seal", id=attempt.id, manifest={}, keep=0)
            self._over(attempt)
            return
        attempt.sealing = True
        manifest = replace(attempt.manifest, ranks=attempt.parts).to_wire()
        keep = self._state.config.persist_keep
        self._out.send(attempt.sealer, "persist_seal", id=attempt.id, manifest=manifest, keep=keep)

    def _manifest(self, epoch: int, version: int) -> Manifest:
        """Of what is about to be written: of this start of the script, whatever comes before it is complete."""
        state = self._state
        assert state.settings is not None
        self._line = self._line or persisted.line_of(state.job)
        return Manifest(
            id=persisted.folder_name(state.serial, version),
            version=version,
            epoch=epoch,
            world_size=state.job.world_size,
            ranks={},
            layouts={rank.rank: dict(rank.layout or {}) for rank in state.members.ranks.values()},
            constants=dict(state.constants),
            groups=[sorted(group) for group in sorted(state.kinds.groups, key=min)],
            frozen=sorted(state.kinds.frozen),
            on_device=state.kinds.on_device,
            settings=state.settings.to_wire(),
            line=self._line,
        )

    def on_persist_sealed(self, node: int, id: str, reason: str) -> None:
        """The version is complete, or will not be."""
        attempt = self._attempt
        if attempt is not None and attempt.id == id and attempt.sealing and attempt.sealer == node:
            attempt.problem = reason
            self._over(attempt)

    def _over(self, attempt: Attempt) -> None:
        self._attempt, took_s = None, self._out.now() - attempt.began
        if attempt.problem:
            self._why = attempt.problem
            self._out.emit("version_lost", version=attempt.manifest.version, reason=attempt.problem)
            self._out.say(f"version {attempt.manifest.version} was not written to {self._directory}: {attempt.problem}")
            return
        self._failed = None
        self._state.kept = f"{self._directory}/{attempt.id}", attempt.manifest.version
        size = sum(part.size for part in attempt.parts.values())
        self._out.emit(
            "version_kept",
            version=attempt.manifest.version,
            path=self._state.kept[0],
            bytes=size,
            took_s=round(took_s, 3),
        )

    def lost(self, node: int) -> None:
        """What `node` was to write will not come."""
        attempt = self._attempt
        if attempt is None:
            return
        if attempt.sealing and attempt.sealer == node:
            attempt.problem = f"node {node} is lost"
            self._over(attempt)
            return
        if attempt.sealer == node:
            attempt.problem = attempt.problem or f"node {node} is lost"
        if gone := [rank for rank, writer in attempt.writers.items() if writer == node]:
            attempt.problem = attempt.problem or f"node {node} is lost"
            for rank in gone:
                del attempt.writers[rank]
            self._all_said(attempt)

    def on_constants(self, node: int, rank: int, file: str, size: int) -> None:
        """`rank` has written the frozen state of its redundancy group."""
        if self._state.members.ranks[rank].started:  # else of the previous start
            self._state.constants[rank] = Part(file, size)
