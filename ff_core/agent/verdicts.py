"""A verdict as an agent carries it out: slots re-stamped, arenas made, sources started, workers told.

What it changes (slots, epoch) changes before the agent looks at its next message.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ff_core.agent.newcomers import Newcomers
from ff_core.agent.replica_store import ArenaKey, create_arenas
from ff_core.agent.state import NodeState
from ff_core.contract.persisted import constants_path
from ff_core.copy.arena import Arena


class Verdicts:
    """Of one agent, one after another."""

    def __init__(self, state: NodeState, newcomers: Newcomers) -> None:
        self._state, self._newcomers = state, newcomers

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
        interval: int,
        resumes: bool,
        source_rank: int | None = None,
        constants: dict[int, str] | None = None,
    ) -> None:
        """The verdict of `epoch`, unless a newer halt has overtaken it."""
        state, frozen = self._state, constants or {}
        if epoch != state.halt_epoch:
            return
        made = await self._missing_arenas(own, replicas)
        if epoch != state.halt_epoch:
            for unwanted in made.values():
                unwanted.close()
            return
        state.carry_out(old_epoch, epoch, version)
        state.halt_epoch = None
        try:
            state.store.allocate(own, replicas, made)
        except (OSError, MemoryError) as error:
            state.send("arenas_failed", epoch=epoch, reason=str(error))
            return
        state.port.enter_epoch(epoch)
        for order in send:
            failed = partial(self._source_failed, order["kind"], order["rank"], epoch)
            arena = state.store.find(order["kind"], order["rank"])
            if arena is None:
                failed("it is not here")
            else:
                state.port.send(order, arena, epoch, version, failed)
        for rank, role in roles.items():
            worker = state.workers.of_rank(rank)
            if rank not in own or worker is None:
                continue
            arena = state.store.own[rank]
            if role["filled"]:
                self._newcomers.filling(rank, epoch, version)
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
                interval=interval,
                resumes=resumes,
                **({"constants": constants_path(state.config.persist_dir, frozen[rank])} if rank in frozen else {}),
                **({} if state.workers.store is None else {"store": state.workers.store}),
            )
        self._newcomers.look()

    async def _missing_arenas(self, own: dict[int, Any], replicas: dict[int, Any]) -> dict[ArenaKey, Arena]:
        """New ones; made in a thread, for it takes long, and before anything is changed, for a newer halt may come
        meanwhile."""
        missing = self._state.store.missing(own, replicas)
        if not missing:
            return {}
        try:
            return await asyncio.to_thread(create_arenas, missing)
        except (OSError, MemoryError):
            return {}  # allocate() meets the same and reports it

    def _source_failed(self, kind: str, rank: int, epoch: int, text: str) -> None:
        state = self._state
        arena = state.store.find(kind, rank)
        if arena is not None:
            for index, info in enumerate(arena.slot_infos()):
                if info.complete:
                    try:
                        arena.verify(index)
                    except Exception:  # whatever is wrong with it: it is no source
                        arena.empty(index)
        reason = f"the copy on node {state.node} could not be sent: {text}"
        state.send("bad_slot", rank=rank, epoch=epoch, reason=reason)
