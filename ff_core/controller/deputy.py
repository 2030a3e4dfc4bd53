"""A deputy: a launcher's server that becomes the job's controller if all agents that live join it.

It listens as long as its launcher lives, so whoever is refused there knows that the node is dead. The rules are in
docs/protocol.md, section 8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc

from ff_core.contract import persisted, rpc
from ff_core.contract.address import bracketed, endpoint
from ff_core.contract.job import JobSpec
from ff_core.contract.proof import is_proven_dead
from ff_core.controller.door import Door, described
from ff_core.controller.election import Election, Joined
from ff_core.controller.service import Service
from ff_core.controller.takeover import Takeover
from ff_core.errors import ProtocolError
from ff_core.observe.events import EventLog

#: All who live must have joined so long after the first.
TOGETHER_S = 10.0
#: A majority waits so long for others.
OTHERS_S = 3.0
_AGAIN_S = 0.05


HostStore = Callable[[tuple[str, int]], tuple[str, int]]
Address = tuple[str, int]
TakenOver = Callable[["DeputyServer", JobSpec, dict[str, str], Address, Sequence[Address]], None]


class DeputyServer(Service):
    """host_store(controller): serves an empty torch store as long as this process lives, in which nodes that come find
    the address of the controller, (host, port); returns the store's.
    taken_over(self, job, line, endpoint, silent): called once, from the controller's thread; it must not take long.
    line: as in JobState.  silent: where launchers listen that may live, and may have been the controller."""

    def __init__(self, secret: bytes, host: str, host_store: HostStore, taken_over: TakenOver) -> None:
        super().__init__(host)
        self._secret, self._host_store, self._taken_over = secret, host_store, taken_over
        self._election = Election()
        self._waiting: dict[int, tuple[rpc.Stream, asyncio.Future[str]]] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._died_at = 0.0
        self._door: Door | None = None  # once it is in charge

    def in_charge(self) -> bool:
        """This is the job's controller now."""
        return self._controller is not None

    def close(self) -> None:
        """Its agent has ended, and it is not in charge: nobody joins it any more. Returns when nobody listens."""
        self._call(self.finish, 0, "")
        self.wait()

    # ---- Service ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Those who join are waited for in a task of its own."""

    def _close(self, reason: str) -> None:
        self._refuse(reason, list(self._waiting))
        if self._door is not None:
            self._door.close(reason)

    def abandon(self, node: int) -> None:
        super().abandon(node)
        if self._door is not None:
            self._door.lost(node)

    async def _session(self, stream: rpc.Stream) -> None:
        if self._door is not None:
            await self._through(self._door, stream)
            return
        try:
            hello, our_proof = await rpc.challenge(stream, self._secret)
            if not hello.get("joins") or self.in_charge() or self._stopping.is_set():
                await stream.send_now("refused", reason="this launcher does not let nodes into the job")
                return
            joined = Joined.of(described(hello), hello["joins"])
            reason = self._election.join(joined)
            if reason:
                await stream.send_now("refused", reason=reason, **self._again(joined.term))
                return
        except (ProtocolError, asyncio.TimeoutError, KeyError, TypeError, ValueError) as error:
            self.say(f"connection refused: {error or 'no hello in time'}")
            return
        await self._until_in_charge(joined.node.id, joined.term, stream, our_proof)

    def _again(self, term: int) -> dict[str, int]:
        """With which term whoever came with `term` may ask again."""
        return {"term": self._election.term} if term < self._election.term else {}

    async def _until_in_charge(self, node: int, term: int, stream: rpc.Stream, our_proof: bytes) -> None:
        loop = asyncio.get_running_loop()
        let_in: asyncio.Future[str] = loop.create_future()
        self._waiting[node] = stream, let_in
        if self._gathering is None:
            self._died_at = time.time()
            self._gathering = loop.create_task(self._gather())
        first = asyncio.ensure_future(stream.receive())
        try:
            await asyncio.wait((let_in, first), return_when=asyncio.FIRST_COMPLETED)
            reason = let_in.result() if let_in.done() else "gone"
        except asyncio.CancelledError:  # so gRPC ends the session of who has gone
            reason = "gone"
        self._waiting.pop(node, None)
        if not reason:
            await self._serve(node, stream, our_proof, first)
            return
        self._election.leave(node)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        if reason != "gone":
            with suppress(grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError):
                await stream.send_now("refused", reason=reason, **self._again(term))

    # ---- taking over ------------------------------------------------------------------------------------------------

    async def _gather(self) -> None:
        """From the first who joins until all have, or are proven dead, or the time is over."""
        try:
            await self._until_complete()
        except Exception as error:
            self._refuse(f"the controller cannot be here: {error}", list(self._waiting))
            raise
        finally:
            self._gathering = None

    async def _until_complete(self) -> None:
        deadline, enough_at = time.monotonic() + TOGETHER_S, float("inf")
        store = asyncio.ensure_future(asyncio.to_thread(self._host_store, self._address.result()))
        while self._waiting and not self._stopping.is_set():
            missing = self._election.missing()
            dead = await asyncio.gather(*(is_proven_dead(*place) for place in missing.values()))
            self._election.dead |= {node for node, is_dead in zip(missing, dead, strict=True) if is_dead}
            self._refuse("another one has joined with a higher term", self._election.outdated())
            now = time.monotonic()
            enough_at = min(enough_at, now) if self._election.has_majority() else float("inf")
            enough = self._election.is_complete() or self._is_enough(now - enough_at)
            if enough and store.done() and self._home() in self._election.joined:
                self._take_over(store.result())
                return
            if now > deadline and enough_at > now:
                nodes = ", ".join(map(str, self._election.missing()))
                text = f"nobody takes over: node {nodes} does not answer, and may live"
                self._refuse(f"{text}; those who have come are no majority", list(self._waiting))
                return
            await asyncio.sleep(_AGAIN_S)

    def _home(self) -> int:
        """The node of this launcher; -1: the newest record does not know it."""
        host, port = self._address.result()
        places = self._election.record.places.items() if self._election.joined else ()
        return next((node for node, place in places if (bracketed(place[0]), place[1]) == (host, port)), -1)

    def _is_enough(self, since_s: float) -> bool:
        """A majority has been here for since_s (-inf: it is not). Whoever else lives comes at about the same time; the
        controller that is silent does not."""
        return since_s > OTHERS_S or (since_s >= 0 and self._election.missing().keys() <= self._election.silent())

    def _refuse(self, reason: str, nodes: list[int]) -> None:
        for node in nodes:
            _, let_in = self._waiting[node]
            if not let_in.done():
                let_in.set_result(reason)

    def _take_over(self, store: tuple[str, int]) -> None:
        outsiders = self._election.outsiders()
        self._refuse("the job goes on without this node", outsiders)
        for node in outsiders:
            self._election.leave(node)
        joined, record, now = self._election.joined, self._election.record, self.now()
        for one in joined.values():
            one.node.last_beat = now
        takeover = Takeover(self, persisted.find, joined, record, self._died_at, self._home(), self._election.dead)
        self._store = store
        state = takeover.controller.state
        self._job, state.endpoint = state.job, endpoint(*store)
        self._door = Door(state.job, self._secret, self, state.line)
        self._door.goes_on({node: one.node.hostname for node, one in joined.items()}, max(record.machines))
        self._events = EventLog(self._job.out_dir) if self._job.out_dir else None
        self._controller = takeover.controller
        for node in joined:
            stream, let_in = self._waiting[node]
            self._streams[node] = stream  # what is sent waits there until its session has said welcome
            let_in.set_result("")
        self.say(f"nodes that come are let in here: fftrain run --standby --rdzv-endpoint {state.endpoint} ...")
        self._guard(takeover.begin)
        silent = [(place[0], place[1]) for place in self._election.missing().values()]
        self._taken_over(self, state.job, state.line, store, silent)
