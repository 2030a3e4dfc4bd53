"""A verdict as an agent carries it out: slots re-stamped, arenas made, sources started, workers told.

What it changes (slots, epoch) changes before the agent looks at its next message.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from ff_core.agent.store import ArenaKey, create_arenas
from ff_core.copy.arena import Arena

if TYPE_CHECKING:
    from ff_core.agent.agent import Agent


class Verdicts:
    """Of one agent, one after another."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def carry_out(
        self,
        epoch: int,
        old_epoch: int,
        version: int,
        newcomers: list[int],
        restored: list[int],
        roles: dict[int, Any],
        send: list[Any],
        own: dict[int, Any],
        replicas: dict[int, Any],
        holders: dict[int, Any],
        coverage: str,
        source_rank: int | None = None,
    ) -> None:
        """The verdict of `epoch`, unless a newer halt has overtaken it."""
        agent = self._agent
        if epoch != agent.halting.epoch:
            return
        made = await self._missing_arenas(own, replicas)
        if epoch != agent.halting.epoch:
            for unwanted in made.values():
                unwanted.close()
            return
        agent.epoch = epoch
        agent.halting.over()
        agent.store.restamp(version, old_epoch, epoch)
        try:
            agent.store.allocate(own, replicas, made)
        except (OSError, MemoryError) as error:
            agent.send("arenas_failed", epoch=epoch, reason=str(error))
            return
        agent.port.enter_epoch(epoch)
        for order in send:
            failed = partial(self._source_failed, order["kind"], order["rank"], epoch)
            arena = agent.store.find(order["kind"], order["rank"])
            if arena is None:
                failed("it is not here")
            else:
                agent.port.send(order, arena, epoch, version, failed)
        for rank, role in roles.items():
            worker = agent.workers.of_rank(rank)
            if rank not in own or worker is None:
                continue
            arena = agent.store.own[rank]
            if role["filled"]:
                agent.newcomers.filling(rank, epoch, version)
            worker.send(
                "go_on",
                (arena.fd,),
                epoch=epoch,
                version=version,
                source=role["source"],
                filled=role["filled"],
                newcomers=newcomers,
                restored=restored,
                source_rank=source_rank,
                holders=holders[rank],
                coverage=coverage,
            )
        agent.data_arrived()

    async def _missing_arenas(self, own: dict[int, Any], replicas: dict[int, Any]) -> dict[ArenaKey, Arena]:
        """New ones; made in a thread, for it takes long, and before anything is changed, for a newer halt may come
        meanwhile."""
        missing = self._agent.store.missing(own, replicas)
        if not missing:
            return {}
        try:
            return await asyncio.to_thread(create_arenas, missing)
        except (OSError, MemoryError):
            return {}  # allocate() meets the same and reports it

    def _source_failed(self, kind: str, rank: int, epoch: int, text: str) -> None:
        agent = self._agent
        arena = agent.store.find(kind, rank)
        if arena is not None:
            for index, info in enumerate(arena.slot_infos()):
                if info.complete:
                    try:
                        arena.verify(index)
                    except Exception:  # whatever is wrong with it: it is no source
                        arena.empty(index)
        reason = f"the copy on node {agent.node} could not be sent: {text}"
        agent.send("bad_slot", rank=rank, epoch=epoch, reason=reason)
