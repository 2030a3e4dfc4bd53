"""From connected agents to a protected job: the part of the controller before the first iteration.

The order:
1. All agents are connected.
2. `start`: workers are spawned.
3. Every rank says what it must protect.
4. Memory is checked per machine, and holders are chosen.
5. Agents allocate.
6. Every rank learns its holders and begins.
7. All are training.
"""

from __future__ import annotations

from typing import Any

from ff_core.config.settings import Settings
from ff_core.controller.copying import Copying
from ff_core.controller.coverage import announce_coverage
from ff_core.controller.hang import HangDetector
from ff_core.controller.placement import place
from ff_core.controller.resuming import Resuming
from ff_core.controller.state import JobControl, JobState
from ff_core.copy.arena import arena_bytes
from ff_core.errors import ConfigError
from ff_core.units import format_bytes


class Startup:
    """One start of the script on all ranks (a restart makes a new one)."""

    def __init__(self, state: JobState, control: JobControl, copying: Copying, resuming: Resuming) -> None:
        self._state, self._control, self._copying, self._resuming = state, control, copying, resuming
        self.members, self.out, self.job = state.members, state.out, state.job
        self.settings: Settings | None = None
        self.first_rank = -1  # the one whose settings they are
        self.ready_nodes: set[int] = set()
        self.placed = False  # every rank has been told its holders

    def begin(self, *, anew: bool = False) -> None:
        """All agents are there: spread ranks over the nodes in order and have them spawned. Nodes beyond those that
        are needed stand by.

        If the job goes on from a version on disk nothing is spawned yet (see Resuming), unless it is to begin anew.
        """
        state = self._state
        try:
            self.settings = self._resuming.look(anew=anew)
        except ConfigError as error:
            self._control.finish(1, str(error))
            return
        seats = self.members.places()
        for number, rank in self.members.ranks.items():
            rank.node = seats[number // self.job.nproc_per_node]
            if state.resuming is None:
                rank.uid, rank.alive = f"s{state.restart}-r{number}", True
        if state.restart == 0:
            self.out.emit(
                "job_start",
                world_size=self.job.world_size,
                nodes=self.job.nodes,
                emulated=self.job.emulated,
                entrypoint=self.job.entrypoint,
            )
        for node in self.members.live_nodes():
            self._start(node, state.epoch)
        if state.resuming is not None:
            self._allocate()

    def goes_on(self, settings: Settings) -> None:
        """Another controller has done all this, with `settings`."""
        self.settings, self.placed = settings, True

    def admit(self, node: int, epoch: int) -> None:
        """`node` has come after begin(): it plays no rank, and gets what the others have got. epoch: that its agent
        is in from now on."""
        self._start(node, epoch)
        if self.settings is not None:
            self._send_arenas(node, self.members.layouts()[node], self.settings, epoch)

    def _start(self, node: int, epoch: int) -> None:
        here = self.members.on_node(node)
        ranks = [[rank.rank, rank.uid] for rank in here if rank.alive]
        self.out.send(
            node,
            "start",
            restart=self._state.restart,
            epoch=epoch,
            injections=self._state.injections_left(),
            ranks=ranks,
            standby=not here,
        )

    def _send_arenas(self, node: int, layouts: dict[str, Any], settings: Settings, epoch: int) -> None:
        self.out.send(
            node,
            "arenas",
            epoch=epoch,
            settings=settings.to_wire(),
            own=layouts["own"],
            replicas=layouts["replicas"],
        )

    def on_protect(
        self,
        node: int,
        rank: int,
        settings: dict[str, Any],
        journal_bytes: int,
        has_constant: bool,
        on_device: bool,
        peers: list[int] | None = None,
        **sizes: int,
    ) -> None:
        """A rank has built everything and knows what it must protect."""
        entry = self.members.ranks[rank]
        if not entry.started:
            return  # of the previous start: the agent has not got round to this one
        mine = Settings.from_wire(settings)
        if self.settings is None:
            self.settings, self.first_rank = mine, rank
        elif differing := mine.differences(self.settings):
            texts = [
                f"{name} is {here} on rank {rank} and {there} on rank {self.first_rank}"
                for name, here, there in differing
            ]
            self._control.finish(1, f"the ranks' settings differ: {'; '.join(texts)}")
            return
        kinds = self._state.kinds
        if has_constant:
            kinds.has_constant = True
            kinds.frozen.add(rank)
        kinds.on_device |= on_device
        if peers is not None:
            kinds.groups.add(frozenset(peers))
        # room for the journal of a replacement, whose script may take other turns before it is replayed
        entry.layout = {
            "rank": rank,
            "slots": 2,
            "journal_capacity": 2 * journal_bytes + 65536,
            "chunk_bytes": mine.config.chunk_bytes,
            **sizes,
        }
        if all(other.layout is not None for other in self.members.ranks.values()):
            self._allocate()

    def _allocate(self) -> None:
        state = self._state
        assert self.settings is not None
        self._settle(self.settings)
        replicas = state.config.replicas
        holders = place(self.members.node_of(), self.members.holding(replicas), replicas, {})
        for rank in self.members.ranks.values():
            rank.holders = holders[rank.rank]
        problem = self._memory_problem()
        if problem:
            self._control.finish(1, problem)
            return
        announce_coverage(state)
        for node, layouts in self.members.layouts().items():
            self._send_arenas(node, layouts, self.settings, state.epoch)

    def _settle(self, settings: Settings) -> None:
        """From here on the job runs with `settings`, which hold what its script gave; agents get them with their
        arenas."""
        state = self._state
        state.settings = settings
        state.config = settings.config
        state.hangs = HangDetector(state.config.hang_timeout_s)
        for node in self.members.live_nodes():  # agents have beaten at another interval until now
            self.members.nodes[node].last_beat = self.out.now()
        given = settings.told()
        self.out.emit("settings", given=given)
        if given:
            self.out.say(
                "settings: " + ", ".join(f"{name} = {value} ({origin})" for name, (value, origin) in given.items())
            )

    def _memory_problem(self) -> str:
        """Empty, or why some machine's memory is not enough, in bytes per node."""
        need_by_host: dict[str, int] = {}
        lines = []
        for node_id, layouts in self.members.layouts().items():
            node = self.members.nodes[node_id]
            own = sum(arena_bytes(layout) for layout in layouts["own"].values())
            if self._state.config.persist_dir:  # a copy of what is being written
                own += sum(arena_bytes({**layout, "slots": 1}) for layout in layouts["own"].values())
            replicas = sum(arena_bytes(layout) for layout in layouts["replicas"].values())
            need_by_host[node.host_id] = need_by_host.get(node.host_id, 0) + own + replicas
            lines.append((node, own, replicas))
        limit = self._state.config.memory_limit_bytes
        over = []
        for node, own, replicas in lines:
            shared = need_by_host[node.host_id]
            free = node.free_bytes
            if shared > free or (limit and own + replicas > limit):
                over.append(
                    f"node {node.id} ({node.hostname}): needed {own + replicas} bytes "
                    f"({format_bytes(own + replicas)}: own slots {format_bytes(own)}, replicas of others "
                    f"{format_bytes(replicas)}), free {free} bytes ({format_bytes(free)})"
                    + (f" for {format_bytes(shared)} of all nodes on this machine" if shared != own + replicas else "")
                    + (f", memory_limit_bytes {limit}" if limit else "")
                )
        if not over:
            return ""
        return (
            "not enough memory for the slots that protect this job:\n  "
            + "\n  ".join(over)
            + "\nUse more nodes, fewer replicas, or raise memory_limit_bytes "
            "(see the table each rank prints of what it copies)."
        )

    def on_arenas_failed(self, node: int, epoch: int, reason: str) -> None:
        if epoch == self._state.epoch:
            self._control.finish(1, f"node {node}: {reason}")

    def on_arenas_ready(self, node: int, epoch: int) -> None:
        if epoch != self._state.epoch:
            return
        self.ready_nodes.add(node)
        self.look()

    def look(self) -> None:
        """A node has its memory, or one that plays no rank is gone: if nobody is waited for, ranks get their
        holders. Nodes that come later have nothing to wait for."""
        if not self.placed and self.ready_nodes and self.ready_nodes >= set(self.members.live_nodes()):
            self.placed, epoch = True, self._state.epoch
            interval, coverage = self._copying.first(), self._state.coverage
            if self._state.resuming is not None:
                self._resuming.load()
                return
            for other, addresses in self.members.holder_addresses().items():
                self.out.send(other, "placement", epoch=epoch, holders=addresses, coverage=coverage, interval=interval)

    def on_training(self, node: int, rank: int) -> None:
        """A rank's first version is being copied. Deaths count as failovers once that holds for all."""
        if not self.members.ranks[rank].started:
            return  # of the previous start
        self.members.ranks[rank].training = True
        if not self._state.is_protecting and all(entry.training for entry in self.members.ranks.values()):
            self._state.is_protecting = True
            self.out.emit("training_start", coverage=self._state.coverage)
            self._control.fill_holders()
