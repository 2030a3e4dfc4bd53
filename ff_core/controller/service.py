"""A controller as a running service: gRPC in front, events.jsonl and the terminal behind, one event loop in one
thread. `server.py` has the one with which a job begins, `deputy.py` one that may take over."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc

from ff_core.contract import rpc
from ff_core.contract.job import LOST_CODE, JobSpec
from ff_core.contract.proof import is_proven_dead
from ff_core.controller.controller import Controller
from ff_core.controller.door import Door, Inside
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from ff_core.controller.succession import Succession
from ff_core.errors import ProtocolError
from ff_core.observe.events import EventLog

_TICK_S = 0.1
#: Agents that have not said so long after their workers' last second that they have ended them are not waited for.
_STOP_S = 15.0


class Service(Outbox, Inside):
    """A controller, or what may become one, with its streams to agents. `start`, then `wait` for the exit code; `stop`
    from a signal handler's thread."""

    def __init__(self, host: str, port: int = 0) -> None:
        self._host, self._port = host, port
        self._result: Future[tuple[int, str]] = Future()
        self._address: Future[tuple[str, int]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="ff-controller")
        self._streams: dict[int, rpc.Stream] = {}
        self._stopped: set[int] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: JobSpec | None = None  # from when on it is known
        self._events: EventLog | None = None
        self._store: tuple[str, int] | None = None  # torch's, if it is not where the job began
        self._controller: Controller | None = None
        self._outcome: tuple[int, str] | None = None
        self._fenced = ""  # why, if another controller may have the job
        self._proving: asyncio.Task[None] | None = None
        #: Called with a node that counts as lost, in the controller's thread.
        self.on_lost: Callable[[int], None] = lambda node: None
        #: The endpoint of the job, if it turned out that it runs and has its controller elsewhere.
        self.elsewhere: tuple[str, int] | None = None

    # ---- what kinds of it do otherwise ------------------------------------------------------------------------------

    @abstractmethod
    async def _session(self, stream: rpc.Stream) -> None:
        """One connection, from its beginning to its end."""

    @abstractmethod
    def _look(self) -> None:
        """Called a few times a second while there is no controller."""

    @abstractmethod
    def _close(self, reason: str) -> None:
        """Whoever waits to be let in is turned away, and who comes later."""

    # ---- called by the launcher -------------------------------------------------------------------------------------

    def start(self) -> tuple[str, int]:
        """Listen; returns the address agents connect to. Raises OSError if it cannot."""
        self._thread.start()
        return self._address.result()

    def wait(self) -> tuple[int, str]:
        """Block until the job is over and agents have stopped: (exit code, last words for the person, maybe empty)."""
        result = self._result.result()
        self._thread.join()
        return result

    def done(self) -> bool:
        return self._result.done()

    def stop(self, signum: int) -> None:
        """End the job because of a signal, which workers get too: exit code 1."""
        self._call(self._finish_from_outside, f"stopped by {signal.Signals(signum).name}", signum)

    def fail(self, reason: str) -> None:
        """End the job, which cannot begin, or of which something is another launcher's now."""
        self._call(self._is_elsewhere, reason)

    def give_up(self) -> None:
        """This is no controller after all: end, without a word in the job's events, which may be another launcher's."""
        self._call(self.finish, 1, "")

    def agent_failed(self, node: int, reason: str) -> None:
        """The launcher saw an agent's process end before or without its stream ending."""
        self._call(self._agent_failed, node, reason)

    def _call(self, what: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(what, *arguments)

    # ---- Outbox -----------------------------------------------------------------------------------------------------

    def send(self, node: int, name: str, **fields: Any) -> None:
        stream = self._streams.get(node)
        if stream is not None:
            stream.send(name, **fields)

    def emit(self, kind: str, **fields: Any) -> None:
        if self._events is not None:
            self._events.emit(kind, **fields)

    def abandon(self, node: int) -> None:
        """The agent of another machine has its own launcher, and ends by what it hears or no longer hears."""
        self.on_lost(node)

    def say(self, text: str) -> None:
        print(f"fftrain: {text}", file=sys.stderr, flush=True)

    def now(self) -> float:
        return time.time()

    def finish(self, code: int, summary: str) -> None:
        self._outcome = self._outcome or (code, summary)
        self._begin_stop(code, 0)

    def fenced(self, reason: str) -> None:
        """See Outbox. It goes on listening: whoever has the job says so there."""
        assert self._job is not None
        self._fenced, self._events = reason, None  # what happens now others write down
        self.say(f"{reason}. This node's workers end; waiting {self._job.join_timeout_s:g} s to hear where the job is")
        for node in self._streams:
            self.send(node, "stop", code=1, signum=0, lost=True)
        self._close(f"the controller here has been cut off: {reason}")
        text = (
            f"{reason}. If it does, it says at which endpoint it lets nodes in: `fftrain run --standby` comes there. "
            "If no node has the job, start it again on all"
        )
        asyncio.get_running_loop().call_later(self._job.join_timeout_s, self.finish, LOST_CODE, text)

    # ---- inside the loop --------------------------------------------------------------------------------------------

    def _begin_stop(self, code: int, signum: int) -> None:
        self._stop_s = _STOP_S + (self._job.shutdown_timeout_s if signum and self._job is not None else 0.0)
        for node in self._streams:
            self.send(node, "stop", code=code, signum=signum)
        self._close("the job is over")
        self._stopping.set()

    def cannot_begin(self, reason: str) -> None:
        """End the job, which may not have begun, unless it has ended."""
        if self._controller is not None:
            self._controller.finish(1, reason)
        elif self._outcome is None:
            self.emit("job_end", code=1, summary=reason)
            self.finish(1, reason)

    def _is_elsewhere(self, reason: str) -> None:
        """Where others can elect a controller, that one has taken it."""
        state = None if self._controller is None else self._controller.state
        if state is None or state.finished or not state.quorum.can_be_outvoted():
            self.cannot_begin(reason)
        else:
            state.finished = True
            self.fenced(reason)

    def _finish_from_outside(self, text: str, signum: int) -> None:
        if self._controller is None:
            self.cannot_begin(text)
        elif self._fenced:
            self.finish(1, text)
        elif not self._controller.state.finished and not self._controller.state.stopping:
            self._controller.stop(text)
            self._outcome = (1, text)
            self._begin_stop(1, signum)

    def _agent_failed(self, node: int, reason: str) -> None:
        if self._controller is not None and node in self._controller.state.members.nodes:
            self._controller.node_down(node, reason)
        else:
            self.cannot_begin(f"the agent of node {node} failed to start: {reason}")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            server, port = await rpc.serve(self._host, self._port, self._session)
        except BaseException as error:
            self._address.set_exception(error)
            return
        self._address.set_result((self._host, port))
        ticker = asyncio.create_task(self._tick())
        try:
            await self._stopping.wait()
            deadline = time.monotonic() + self._stop_s
            while self._stop_is_awaited() and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        finally:
            ticker.cancel()
            for stream in self._streams.values():
                stream.finish()
            await server.stop(0.2)
            self._result.set_result(self._outcome or (1, ""))

    def _stop_is_awaited(self) -> bool:
        """An agent that counted as lost before the end has been told so, and may be frozen or cut off."""
        nodes = {} if self._controller is None else self._controller.state.members.nodes
        return any(node not in nodes or nodes[node].alive for node in set(self._streams) - self._stopped)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._controller is not None:
                self._guard(self._controller.tick)
                self._prove(self._controller.succession)
            elif not self._stopping.is_set():
                self._look()

    def _prove(self, succession: Succession) -> None:
        """Lost nodes whose death would let this controller go on are looked at, one look after another."""
        unproven = succession.unproven()
        if not unproven or (self._proving is not None and not self._proving.done()):
            return

        async def look() -> None:
            found = await asyncio.gather(*(is_proven_dead(*place) for place in unproven.values()))
            dead = [node for node, is_dead in zip(unproven, found, strict=True) if is_dead]
            if dead:
                self._guard(succession.proven_dead, dead)

        self._proving = asyncio.create_task(look())

    def _guard(self, call: Any, *arguments: Any) -> None:
        """A bug in the controller must end the job with its traceback, not hang it."""
        try:
            call(*arguments)
        except ProtocolError:
            raise
        except Exception as error:
            import traceback

            self.cannot_begin(f"internal error of the controller: {error}\n{traceback.format_exc()}")

    async def drain(self, node: int) -> str:
        """See Inside."""
        if self._controller is None:
            return "the job has not begun"
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def answer(reason: str) -> None:
            if not ended.done():
                ended.set_result(reason)

        self._guard(self._controller.drain, node, answer)
        over = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        return ended.result() if ended.done() else "the job is over"

    def goes_on_at(self, host: str, port: int) -> None:
        """See Inside."""
        if self._outcome is None:
            self.elsewhere, self._events = (host, port), None
            if self._controller is not None:
                self._controller.state.finished = True
            self.finish(1, f"the job goes on, with its controller at {host}:{port}")

    def let_in(self, node: Node, stream: rpc.Stream) -> None:
        """See Inside."""
        assert self._controller is not None
        self._streams[node.id] = stream  # what is sent waits there until its session has said welcome
        self._guard(self._controller.node_up, node)

    async def _through(self, door: Door, stream: rpc.Stream) -> None:
        """A connection of somebody who comes to `door`."""
        entered = await door.enter(stream)
        if entered is None:
            return
        node, our_proof, first = entered
        try:
            await self._serve(node.id, stream, our_proof, first)
        finally:
            door.lost(node.id)

    async def _serve(self, node: int, stream: rpc.Stream, our_proof: bytes, first: asyncio.Future[Any]) -> None:
        """An agent that takes part, to the end of its connection. first: what it says next."""
        assert self._controller is not None and self._job is not None
        writer: asyncio.Task[None] | None = None
        reason = "its connection closed"
        try:
            job, store = self._job.to_wire(), {} if self._store is None else {"store": [*self._store]}
            await stream.send_now("welcome", proof=our_proof, job=job, node=node, **store)
            writer = asyncio.create_task(stream.pump())
            message = await first
            while message is not None:
                if message["t"] == "stopped":
                    self._stopped.add(node)
                else:
                    self._guard(self._controller.handle, node, message)
                message = await stream.receive()
        except ProtocolError as error:
            reason = f"protocol error: {error}"
        except (grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError) as error:
            reason = f"its connection broke ({type(error).__name__})"
        finally:
            if writer is not None:
                writer.cancel()
            self._streams.pop(node, None)
            self._guard(self._controller.node_down, node, reason)
