"""From a death to everyone training again: the part of the controller that runs failovers (docs/protocol.md, section
4).

`FailoverRound` holds one attempt's data, `decide` chooses the version; here the messages and the order of steps are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ff_core.contract.slot_report import SlotReport
from ff_core.controller.decide import Decision, Impossible, decide
from ff_core.controller.failover_round import FailoverRound, Step
from ff_core.controller.placement import place

if TYPE_CHECKING:
    from ff_core.controller.controller import Controller

_MOST_WITHOUT_PROGRESS = 8  # failovers that end at the same version: the machine is not what is broken


class Failovers:
    """All failovers of a job, one round at a time. `round` is the newest, also after it is done."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.members = controller.members
        self.out = controller.out
        self.round: FailoverRound | None = None
        self.without_progress = 0  # failovers since W last grew
        self.best = -1

    @property
    def settled(self) -> bool:
        """No failover is under way: commits count."""
        return self.round is None or self.round.step in (Step.RESUMED, Step.DONE)

    def begin(self, dead: set[int], cause: str, died_at: float) -> None:
        """Halt everyone: `dead` ranks (possibly none: a bad slot, a lost holder) force a new epoch. died_at: wall
        clock, s."""
        owner = self.controller
        if not self.members.live_nodes():
            owner.finish(1, f"{cause}; no node is left")
            return
        if self.round is not None and self.round.step is Step.RESUMED:
            self.close(self.round)  # the next death came before the interrupted iteration was done again
        # A round that has not resumed is abandoned and continued: its dead, its clock, and, before its verdict, its
        # slots' epoch.
        last = None if self.settled else self.round
        old_epoch = last.old_epoch if last is not None and last.step is Step.HALTING else owner.epoch
        owner.epoch += 1
        owner.w = -1
        owner.hangs.reset()
        self.round = FailoverRound(
            epoch=owner.epoch,
            old_epoch=old_epoch,
            cause=cause if last is None else f"{last.cause}, then {cause}",
            dead=dead | (last.dead if last else set()),
            died_at=last.died_at if last else died_at,
            detected_at=last.detected_at if last else self.out.now(),
            version=last.version if last else -1,
            attempts=last.attempts + 1 if last else 1,
            warm=dict(last.warm) if last else {},
        )
        for node in self.members.live_nodes():
            self.out.send(node, "halt", epoch=owner.epoch, dead=sorted(self._absent()))
        self.out.emit("halt", epoch=owner.epoch, dead=sorted(self.round.dead), cause=cause)
        self._assign(self.round)

    def explain(self, guess: str, cause: str) -> None:
        """What is known now of a death that a failover has begun with."""
        if self.round is not None:
            self.round.cause = self.round.cause.replace(guess, cause)

    def _assign(self, current: FailoverRound) -> None:
        """Processes for the ranks that have none. They begin with the script at once, alone; whether there is anything
        for them to go on from is decided meanwhile. Ranks for which there is no place stay absent."""
        for number in sorted(self._absent()):
            rank = self.members.ranks[number]
            place_for = self.members.take_replacement(rank.node)
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
                injections=self.controller.injections_left(),
                after_exit=self.controller.startup.on_device,
            )

    def _absent(self) -> set[int]:
        """Ranks that no process plays now."""
        return {rank.rank for rank in self.members.ranks.values() if not rank.alive}

    def on_inventory(self, node: int, epoch: int, arenas: list[Any], live: dict[int, int]) -> None:
        current = self.round
        if current is None or epoch != current.epoch or current.step is not Step.HALTING:
            return
        current.inventories[node] = [SlotReport(*report) for report in arenas]
        for number, version in live.items():
            rank = self.members.ranks[number]
            # Only versions that are copied: going on from another one would need a third slot to make it safe in,
            # while the one that can be gone back to is kept.
            scheduled = version >= 0 and version % self.controller.config.interval == 0
            if scheduled and rank.alive and rank.restored and rank.node == node:
                current.live[number] = version
        if all(other in current.inventories for other in self.members.live_nodes()):
            current.halted_at = self.out.now()
            self._verdict(current)

    def _verdict(self, current: FailoverRound) -> None:
        absent = self._absent()
        decision = decide(
            world_size=self.controller.job.world_size,
            epoch=current.old_epoch,
            live={rank: version for rank, version in current.live.items() if rank not in absent},
            survivors={rank.rank for rank in self.members.ranks.values() if rank.alive and rank.restored},
            slots=current.slots(),
            has_local=any((r.layout or {}).get("local_bytes", 0) for r in self.members.ranks.values()),
            has_constant=self.controller.startup.has_constant,
            node_of=self.members.node_of(),
            groups=self.controller.startup.groups,
        )
        if isinstance(decision, Impossible):
            self.controller.unrecoverable(decision, current)
            return
        if absent:
            ranks = ", ".join(map(str, sorted(absent)))
            self.controller.restart_job(
                f"{current.cause}; no spare and no node is left for rank {ranks} (start with more --spares)", absent
            )
            return
        if decision.version > self.best:
            self.best, self.without_progress = decision.version, 0
        self.without_progress += 1
        if self.without_progress > _MOST_WITHOUT_PROGRESS:
            self.controller.finish(
                1,
                f"{current.cause}; {self.without_progress} failovers in a row did not get past iteration "
                f"{decision.version}. Last words of rank {min(current.dead, default=0)}:\n"
                + self.members.ranks[min(current.dead, default=0)].tail,
            )
            return
        current.version = decision.version
        current.newcomers = sorted(rank.rank for rank in self.members.ranks.values() if not rank.restored)
        holders = place(
            self.members.node_of(), self.members.live_nodes(), self.controller.config.replicas, self.members.holders()
        )
        for rank in self.members.ranks.values():
            rank.holders, rank.committed, rank.leaving = holders[rank.rank], (-1, -1), None
        self.controller.startup.describe_protection()
        self._send_verdict(current, decision)

    def _send_verdict(self, current: FailoverRound, decision: Decision) -> None:
        needs_broadcast = sorted(
            set(current.newcomers) | {rank for rank, source in decision.sources.items() if not source.full}
        )
        addresses = self.controller.startup.holder_addresses()
        roles, sends = {}, []
        for number, source in decision.sources.items():
            home = self.members.ranks[number].node
            local = source.kind == "live" or (source.kind == "own" and source.node == home)
            roles[number] = {
                "source": "live" if source.kind == "live" else "slot",
                "full": source.full,
                "filled": not local,
            }
            if not local:
                sends.append(
                    {
                        "rank": number,
                        "kind": source.kind,
                        "from": source.node,
                        "to_node": home,
                        "to": list(self.members.nodes[home].data_address),
                    }
                )
        current.verdict_at, current.step = self.out.now(), Step.JOINING
        for node in self.members.live_nodes():
            layouts = self.members.layouts_for(node)
            self.out.send(
                node,
                "verdict",
                epoch=current.epoch,
                old_epoch=current.old_epoch,
                version=decision.version,
                source_rank=decision.source_rank,
                newcomers=needs_broadcast,
                restored=[number for number, role in roles.items() if role["source"] != "live"],
                roles=roles,
                send=[order for order in sends if order["from"] == node],
                own=layouts["own"],
                replicas=layouts["replicas"],
                holders=addresses,
                coverage=self.controller.protection,
            )

    def on_bad_slot(self, node: int, rank: int, epoch: int, reason: str) -> None:
        if self.round is None or epoch != self.round.epoch:
            return
        self.out.emit("bad_slot", rank=rank, node=node, reason=reason)
        self.out.say(f"rank {rank}: {reason}; looking for another copy")
        self.begin(set(), f"a copy of rank {rank} on node {node} was damaged", self.out.now())

    def on_ready(self, node: int, rank: int, epoch: int, restored_bytes: int, at: float) -> None:
        current = self.round
        if current is None or epoch != current.epoch or current.step is not Step.JOINING:
            return
        current.ready_at[rank] = at
        current.restored_bytes += restored_bytes
        if len(current.ready_at) == self.controller.job.world_size:
            current.step, current.all_ready_at = Step.REGROUPING, self.out.now()
            for other in self.members.live_nodes():
                self.out.send(other, "regroup", epoch=epoch)

    def on_resumed(self, node: int, rank: int, epoch: int, timings: dict[str, float]) -> None:
        current = self.round
        if current is None or epoch != current.epoch or current.step is not Step.REGROUPING:
            return
        current.resumed[rank] = timings
        self.members.ranks[rank].restored = True
        if len(current.resumed) == self.controller.job.world_size:
            current.step, current.resumed_at = Step.RESUMED, self.out.now()
            self.controller.publish_w()
            self._maybe_done(current)

    def on_redone(self, node: int, rank: int, epoch: int, version: int, at: float) -> None:
        current = self.round
        if current is None or epoch != current.epoch or rank in current.redone:
            return
        current.redone[rank] = at
        self._maybe_done(current)

    def _maybe_done(self, current: FailoverRound) -> None:
        # "redone" of one rank may overtake "resumed" of another: they come from different agents
        if current.step is Step.RESUMED and len(current.redone) == self.controller.job.world_size:
            self.close(current)

    def close(self, current: FailoverRound) -> None:
        """The interrupted iteration is done again everywhere (or the loop has ended): report the failover."""
        current.step = Step.DONE
        summary = current.summary(self.out.now())
        self.out.emit("failover", **summary)
        self.out.say(
            f"failover to epoch {current.epoch}: {current.cause}; everyone went on after iteration {current.version}, "
            f"{summary['total_s']:.2f} s after the death "
            f"({summary['spare']} replacement for ranks {summary['newcomers']})"
        )

    def tick(self, now: float) -> None:
        """Deadlines: joining and regrouping. (Agents see to that of halting.)"""
        current, limit = self.round, self.controller.config.join_timeout_s
        regroup_s = self.controller.config.regroup_timeout_s
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
