"""The door of a job: an agent proves the secret, is compared with node 0, and waits until it has a number."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import Any, Protocol

from ff_core.contract import alike, rpc
from ff_core.contract.job import JobSpec
from ff_core.controller.membership import Node
from ff_core.controller.rendezvous import Arrival, Rendezvous
from ff_core.errors import ProtocolError

#: Anybody can send a wrong secret; that alone must not end a job whose nodes all come.
_WRONG_SECRET_S = 10.0

Entered = tuple[Node, bytes, "asyncio.Future[Any]"]


class Inside(Protocol):
    """Who is behind the door. `service.Service` is it."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A line for the person watching."""

    @abstractmethod
    def cannot_begin(self, reason: str) -> None:
        """End the job."""

    @abstractmethod
    def goes_on_at(self, host: str, port: int) -> None:
        """The job runs already, and its endpoint is there: this is no controller of it."""

    @abstractmethod
    async def drain(self, node: int) -> str:
        """Have `node` leave in order. Returns when it has: empty, or why it has not."""

    @abstractmethod
    def let_in(self, node: Node, stream: rpc.Stream) -> None:
        """`node` has its number, and takes part from now on. Those with which the job starts come in one go."""


class Door:
    """size: how many nodes play ranks; None before the job starts. To be used in one event loop."""

    def __init__(self, job: JobSpec, secret: bytes, inside: Inside, line: dict[str, str] | None = None) -> None:
        """line: what others must have been started with, if that is not what `job` says."""
        self._secret, self._inside, self._numbered = secret, inside, job.numbered
        self.line, self._machine = line or alike.launch_line(job), alike.machine()
        self._rendezvous = Rendezvous(job, self.line, time.monotonic())
        self._closed = ""  # why
        #: Of those who have not been let in yet: what they are, and what wakes their session.
        self._arrived: dict[Arrival, tuple[Node, rpc.Stream, asyncio.Future[str]]] = {}

    @property
    def size(self) -> int | None:
        return self._rendezvous.size

    def goes_on(self, nodes: dict[int, str], given: int) -> None:
        """The job runs, and another controller had let `nodes` in: number -> hostname. given: numbers up to this one
        are."""
        self._rendezvous.goes_on(nodes, given)

    def lost(self, node: int) -> None:
        """`node` is not in the job any more."""
        self._rendezvous.lost(node)

    def close(self, reason: str) -> None:
        """Nobody is let in any more: the job is over, for this controller at least."""
        self._closed = reason
        for _, _, let_in in self._arrived.values():
            if not let_in.done():
                let_in.set_result("the job has ended before it began" if self.size is None else reason)

    def look(self, now: float) -> None:
        """The job has not begun: see whether it can, or cannot any more. now: of time.monotonic()."""
        overdue = self._rendezvous.overdue(now)
        if overdue:
            self._inside.cannot_begin(overdue)
            return
        text = self._rendezvous.reminder(now)
        if text:
            self._inside.say(text)
        self._let_in(now)

    def _let_in(self, now: float) -> None:
        for arrival in self._rendezvous.admitted(now):
            node, stream, let_in = self._arrived[arrival]
            node.id, node.last_beat = arrival.node, time.time()
            let_in.set_result("")
            self._inside.let_in(node, stream)

    async def enter(self, stream: rpc.Stream) -> Entered | None:
        """An agent connected. Returns, when it takes part: the node, our proof, and what the agent says next; None if
        it was turned away or has gone."""
        try:
            hello, our_proof = await rpc.challenge(stream, self._secret)
            node = described(hello)
            arrival = _arrival(node, hello)
            drain = hello.get("drain")
            if drain is not None:
                await stream.send_now("drained", proof=our_proof, reason=await self._inside.drain(drain))
                return None
            if hello.get("goes_on"):
                await stream.send_now("refused", reason="it is another job's controller" if self._other(hello) else "")
                if not self._other(hello):
                    self._inside.goes_on_at(*hello["goes_on"])
                return None
            if hello.get("rival"):
                reason = f"a second launcher was started with --node-rank 0, on {node.hostname}"
            elif hello.get("joins"):
                await stream.send_now("refused", reason="the controller lives: it goes on without this node")
                return None
            elif self._closed:
                reason = self._closed
            else:
                reason = self._rendezvous.problem(arrival)
            if reason:
                await stream.send_now("refused", reason=reason)
                self._turned_away(reason, 0.0)
                return None
        except rpc.WrongSecretError as error:
            self._turned_away(str(error), _WRONG_SECRET_S)
            return None
        except (ProtocolError, asyncio.TimeoutError) as error:
            self._inside.say(f"connection refused: {error or 'no hello in time'}")
            return None
        differing = alike.differences(hello.get("machine") or self._machine, self._machine)
        if differing:
            self._inside.say(
                f"{arrival.name} is not like node 0, and a rank that moves may compute otherwise there: "
                f"{'; '.join(differing)}"
            )
        first = asyncio.ensure_future(stream.receive())  # to be cancelled only with the connection
        reason = await self._until_let_in(arrival, node, stream, first)
        if reason:
            if first.done():
                first.exception()  # asked for, so that nobody warns of it
            else:
                await stream.send_now("refused", reason=reason)
                first.cancel()
            return None
        return node, our_proof, first

    def _other(self, hello: dict[str, Any]) -> bool:
        """Who says hello has another job."""
        return bool(alike.differences(hello.get("launch") or {}, self.line))

    async def _until_let_in(
        self, arrival: Arrival, node: Node, stream: rpc.Stream, first: asyncio.Future[Any]
    ) -> str:  # fmt: skip
        """Wait until `arrival` has a number: empty then, or why it is not let in. first: what it says next, which is
        nothing before it has one; if that ends the agent is gone."""
        let_in: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._arrived[arrival] = node, stream, let_in
        text = self._rendezvous.come(arrival, time.monotonic())
        if text:
            self._inside.say(text)
        self._let_in(time.monotonic())
        await asyncio.wait((let_in, first), return_when=asyncio.FIRST_COMPLETED)
        del self._arrived[arrival]
        if let_in.done():
            return let_in.result()
        self._inside.say(self._rendezvous.leave(arrival))
        return "gone"

    def _turned_away(self, reason: str, patience_s: float) -> None:
        """While nodes are still missing, the one that was turned away is likely one of them: the job ends, at once or
        if it has not begun in patience_s. A job that has begun goes on."""
        self._inside.say(f"connection refused: {reason}")

        def end() -> None:
            if self.size is None and not self._closed:
                own = " and a --node-rank of its own for each" if self._numbered else ""
                self._inside.cannot_begin(f"{reason}. Start all nodes again, with the same options{own}")

        asyncio.get_running_loop().call_later(patience_s, end)


def described(hello: dict[str, Any]) -> Node:
    """The node of an agent that has said hello."""
    deputy = hello.get("deputy")
    return Node(
        id=hello["node"],
        host_id=hello["host_id"],
        hostname=hello["hostname"],
        free_bytes=hello["free_bytes"],
        data_address=(hello["data_host"], hello["data_port"]),
        last_beat=time.time(),
        pid=hello["pid"],
        deputy=(deputy[0], deputy[1]) if deputy else None,
    )


def _arrival(node: Node, hello: dict[str, Any]) -> Arrival:
    launch, standby = hello.get("launch") or {}, bool(hello.get("standby"))
    return Arrival(node.hostname, node.data_address[0], node.id, standby, launch)
