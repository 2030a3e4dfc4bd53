"""From a death to everyone training again: the part of the controller that runs failovers.

The rules are in docs/protocol.md, section 4.
`FailoverRound` holds one attempt's data, `decide` chooses the version; here the messages and the order of steps are.
"""

from __future__ import annotations

from typing import Any

from ff_core.contract.slot_report import SlotReport
from ff_core.controller.copying import Copying
from ff_core.controller.coverage import announce_coverage
from ff_core.controller.decide import Decision, Impossible, decide
from ff_core.controller.failover_round import FailoverRound, Step
from ff_core.controller.placement import place
from ff_core.controller.places import Places
from ff_core.controller.state import JobControl, JobState

_MOST_WITHOUT_PROGRESS = 8  # failovers that end at the same version: the machine is not what is broken


class Failovers:
    """All failovers of one start of the script, one round at a time. The newest is `JobState.round`."""

    def __init__(self, state: JobState, control: JobControl, copying: Copying) -> None:
        self.state, self._control, self._copying = state, control, copying
        self.members, self.out = state.members, state.out
        self._places = Places(state, control)
        self.without_progress = 0  # failovers since W last grew
        self.best = -1

    def begin(self, dead: set[int], cause: str, died_at: float) -> None:
        """See JobControl.begin_failover."""
        state = self.state
        if not self.members.live_nodes():
            self._control.finish(1, f"{cause}; no node is left")
            return
        if state.round is not None and state.round.step is Step.RESUMED:
            state.round.close(self.out)  # the next death came before the interrupted iteration was done again
        # A round that has not resumed is abandoned and continued: its dead, its clock, and, before its verdict, its
        # slots' epoch.
        last = None if state.settled else state.round
        old_epoch = last.old_epoch if last is not None and last.step is Step.HALTING else state.epoch
        state.epoch += 1
        state.w = -1
        state.hangs.reset()
        state.round = FailoverRound(
            epoch=state.epoch,
            old_epoch=old_epoch,
            cause=f"{last.cause}, then {cause}" if last is not None and last.cause else cause,
            dead=dead | (last.dead if last else set()),
            died_at=last.died_at if last else died_at,
            detected_at=last.detected_at if last else self.out.now(),
            version=last.version if last else -1,
            attempts=last.attempts + 1 if last else 1,
            warm=dict(last.warm) if last else {},
            waits_since=last.waits_since if last is not None else None,
        )
        for node in self.members.live_nodes():
            settled = {"settled": [*last.settled]} if last is not None and last.settled else {}
            self.out.send(node, "halt", epoch=state.epoch, dead=sorted(self.members.absent()), **settled)
        self.out.emit("halt", epoch=state.epoch, dead=sorted(state.round.dead), cause=cause)
        self._assign(state.round)

    def halts(self) -> bool:
        """A halt is under way: there is no verdict yet."""
        return self.state.round is not None and self.state.round.step is Step.HALTING

    def admit(self, node: int) -> None:
        """`node` has come while halts(): it is halted as the others are, and gets ranks that had no place."""
        assert self.state.round is not None
        self.out.send(node, "halt", epoch=self.state.epoch, dead=sorted(self.state.round.dead))
        self._assign(self.state.round)

    def spare_came(self) -> None:
        """Some node has one process more that can take a rank: perhaps one that had no place."""
        current = self.state.round
        if current is not None and self.halts() and self.members.absent():
            self._assign(current)
            self._decide(current)

    def look(self) -> None:
        """The controller may decide again."""
        if self.state.round is not None and self.halts():
            self._decide(self.state.round)

    def _assign(self, current: FailoverRound) -> None:
        """Processes for the ranks that have none. They begin with the script at once, alone; whether there is anything
        for them to go on from is decided meanwhile. Ranks for which there is no place stay absent."""
        alone = not any(rank.alive and rank.restored for rank in self.members.ranks.values())
        for number in sorted(self.members.absent()):
            rank = self.members.ranks[number]
            place_for = self.members.take_replacement(rank.node, stays=alone)
            if place_for is None:
                continue
            # a new process: worthless as a source until it has restored
            rank.node, rank.uid = place_for[0], place_for[1] or f"e{current.epoch}-r{number}"
            rank.alive, rank.restored = True, False
            current.warm[number] = place_for[2]
            self.out.send(
                rank.node,
                "assign",
                epoch=current.epoch,
                rank=number,
                uid=rank.uid,
                injections=self.state.injections_left(),
                after_exit=self.state.kinds.on_device,
            )
        if not self.members.absent():
            current.waits_since = None

    def on_inventory(self, node: int, epoch: int, arenas: list[Any], live: dict[int, int]) -> None:
        current = self.state.round
        if current is None or epoch != current.epoch or current.step is not Step.HALTING:
            return
        current.inventories[node] = [SlotReport(*report) for report in arenas]
        for number, version in live.items():
            rank = self.members.ranks[number]
            if version >= 0 and rank.alive and rank.restored and rank.node == node:
                current.live[number] = version
        self._decide(current)

    def _decide(self, current: FailoverRound) -> None:
        """The verdict, if every node has answered."""
        if self.state.may_decide() and all(node in current.inventories for node in self.members.live_nodes()):
            current.halted_at = current.halted_at or self.out.now()
            self._verdict(current)

    def _verdict(self, current: FailoverRound) -> None:
        absent, state = self.members.absent(), self.state
        decision = decide(
            world_size=self.state.job.world_size,
            epoch=current.old_epoch,
            live={rank: version for rank, version in current.live.items() if rank not in absent},
            # What is in no slot lies on disk, too.
            survivors={r.rank for r in self.members.ranks.values() if (r.alive and r.restored) or state.resuming},
            slots=current.slots(),
            has_local=any((r.layout or {}).get("local_bytes", 0) for r in self.members.ranks.values()),
            has_constant=self.state.kinds.has_constant,
            node_of=self.members.node_of(),
            groups=self.state.kinds.groups,
            unfindable=state.unfindable,
        )
        if isinstance(decision, Impossible):
            self._unrecoverable(decision, current)
            return
        if absent:
            self._places.lacking(current, decision.version)
            return
        if decision.version > self.best:
            self.best, self.without_progress = decision.version, 0
        self.without_progress += 1
        if self.without_progress > _MOST_WITHOUT_PROGRESS:
            self._control.finish(
                1,
                f"{current.cause}; {self.without_progress} failovers in a row did not get past iteration "
                f"{decision.version}. Last words of rank {min(current.dead, default=0)}:\n"
                + self.members.ranks[min(current.dead, default=0)].tail,
            )
            return
        current.version = decision.version
        current.newcomers = sorted(rank.rank for rank in self.members.ranks.values() if not rank.restored)
        replicas = self.state.config.replicas
        holders = place(self.members.node_of(), self.members.holding(replicas), replicas, self.members.holders())
        for rank in self.members.ranks.values():
            rank.holders, rank.committed, rank.leaving = holders[rank.rank], (-1, -1), None
        announce_coverage(self.state)
        self._send_verdict(current, decision)
        state.unfindable = {version for version in state.unfindable if version < decision.version}  # others never were

    def _unrecoverable(self, verdict: Impossible, current: FailoverRound) -> None:
        state = self.state
        lost = "; ".join(
            f"rank {rank} can supply {versions or 'nothing'}" for rank, versions in sorted(verdict.lost.items())
        )
        nxt = (
            f"the newest persisted checkpoint is {state.last_checkpoint[0]} (iteration {state.last_checkpoint[1]})"
            if state.last_checkpoint
            else "no checkpoint was persisted by this job"
        )
        text = f"unrecoverable: {current.cause}: {verdict.reason}: {lost}; {nxt}"
        versions = {str(rank): found for rank, found in verdict.lost.items()}
        self.out.emit("unrecoverable", text=text, lost=versions, checkpoint=state.last_checkpoint)
        self._control.restart_job(text, current.dead)

    def _send_verdict(self, current: FailoverRound, decision: Decision) -> None:
        needs_broadcast = {rank for rank, source in decision.sources.items() if not source.full}
        constants = None
        if self.state.resuming is None:
            needs_broadcast |= set(current.newcomers)
        elif self.state.kinds.frozen:
            constants = {rank: self.state.constants_of(rank) for rank in self.state.kinds.frozen}
        # To each node what it needs: with all to all, a thousand nodes would get a million roles.
        addresses, layouts = self.members.holder_addresses(), self.members.layouts()
        roles: dict[int, dict[int, Any]] = {node: {} for node in self.members.live_nodes()}
        sends: dict[int, list[Any]] = {node: [] for node in self.members.live_nodes()}
        restored = [number for number, source in decision.sources.items() if source.kind != "live"]
        for number, source in decision.sources.items():
            home = self.members.ranks[number].node
            local = source.kind == "live" or (source.kind == "own" and source.node == home)
            roles[home][number] = {
                "source": "live" if source.kind == "live" else "slot",
                "full": source.full,
                "filled": not local,
            }
            if not local:
                sends[source.node].append(
                    {
                        "rank": number,
                        "kind": source.kind,
                        "from": source.node,
                        "to_node": home,
                        "to": list(self.members.nodes[home].data_address),
                    }
                )
        current.verdict_at, current.step = self.out.now(), Step.JOINING
        interval = self._copying.begin_epoch(decision.version)
        for node in self.members.live_nodes():
            self.out.send(
                node,
                "verdict",
                epoch=current.epoch,
                old_epoch=current.old_epoch,
                version=decision.version,
                source_rank=decision.source_rank,
                newcomers=sorted(needs_broadcast),
                restored=restored,
                roles=roles[node],
                send=sends[node],
                own=layouts[node]["own"],
                replicas=layouts[node]["replicas"],
                holders=addresses[node],
                coverage=self.state.coverage,
                interval=interval,
                resumes=decision.version == self.state.begun_from,
                **({} if constants is None else {"constants": constants}),
            )

    def on_bad_slot(self, node: int, rank: int, epoch: int, reason: str) -> None:
        if self.state.round is None or epoch != self.state.round.epoch:
            return
        self.out.emit("bad_slot", rank=rank, node=node, reason=reason)
        self.out.say(f"rank {rank}: {reason}; looking for another copy")
        self.begin(set(), f"a copy of rank {rank} on node {node} was damaged", self.out.now())

    def on_ready(self, node: int, rank: int, epoch: int, restored_bytes: int, at: float) -> None:
        current = self.state.round
        if current is None or epoch != current.epoch or current.step is not Step.JOINING:
            return
        current.ready_at[rank] = at
        current.restored_bytes += restored_bytes
        if len(current.ready_at) == self.state.job.world_size:
            current.step, current.all_ready_at = Step.REGROUPING, self.out.now()
            for other in self.members.live_nodes():
                self.out.send(other, "regroup", epoch=epoch)

    def on_resumed(self, node: int, rank: int, epoch: int, timings: dict[str, float]) -> None:
        current = self.state.round
        if current is None or epoch != current.epoch or current.step is not Step.REGROUPING:
            return
        current.resumed[rank] = timings
        self.members.ranks[rank].restored = True
        if len(current.resumed) == self.state.job.world_size:
            current.step, current.resumed_at = Step.RESUMED, self.out.now()
            self.state.resuming = None
            self._control.publish_w()
            self._maybe_done(current)
            self._control.fill_holders()

    def on_redone(self, node: int, rank: int, epoch: int, version: int, at: float) -> None:
        current = self.state.round
        if current is None or epoch != current.epoch or rank in current.redone:
            return
        current.redone[rank] = at
        self._maybe_done(current)

    def _maybe_done(self, current: FailoverRound) -> None:
        # "redone" of one rank may overtake "resumed" of another: they come from different agents
        if current.step is Step.RESUMED and len(current.redone) == self.state.job.world_size:
            current.close(self.out)

    def tick(self, now: float) -> None:
        """Deadlines: of the wait for a place, of joining and regrouping. (Agents see to that of halting.)"""
        current, limit = self.state.round, self.state.config.join_timeout_s
        if current is not None and current.step is Step.HALTING:
            self._places.tick(current, now)
        regroup_s = self.state.config.regroup_timeout_s
        if current is not None and current.step is Step.REGROUPING and now - current.all_ready_at > regroup_s:
            # Who holds the others up cannot be told from here; a process that hangs will not answer the halt either.
            missing = [number for number in self.members.ranks if number not in current.resumed]
            self.begin(set(), f"ranks {missing} did not resume within {regroup_s:g} s (regroup_timeout_s)", now)
        elif current is not None and current.step is Step.JOINING and now - current.verdict_at > limit:
            for number, rank in self.members.ranks.items():
                if number not in current.ready_at:
                    self.out.send(
                        rank.node,
                        "fail_worker",
                        rank=number,
                        reason=f"not ready {limit:g} s after the verdict (join_timeout_s)",
                    )
            current.verdict_at = now  # one more period for the deaths to come in
