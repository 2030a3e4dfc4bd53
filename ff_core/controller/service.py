"""The controller as a running service: gRPC in front, events.jsonl and the terminal behind, one event loop in one
thread."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc

from ff_core.config.settings import Settings
from ff_core.contract import alike, rpc
from ff_core.contract.job import JobSpec
from ff_core.controller.controller import Controller
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from ff_core.errors import ProtocolError
from ff_core.observe.events import EventLog

_TICK_S = 0.1
#: Agents that have not said so long after their workers' last second that they have ended them are not waited for.
_STOP_S = 15.0
#: Anybody can send a wrong secret; that alone must not end a job whose nodes all come.
_WRONG_SECRET_S = 10.0


class ControllerServer(Outbox):
    """One job's controller. `start`, then `wait` for the exit code; `stop` from a signal handler's thread."""

    def __init__(self, job: JobSpec, secret: bytes, host: str, port: int = 0) -> None:
        self._job, self._secret, self._host, self._port = job, secret, host, port
        self._result: Future[tuple[int, str]] = Future()
        self._address: Future[tuple[str, int]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="ff-controller")
        self._streams: dict[int, rpc.Stream] = {}
        self._stopped: set[int] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Called with a lost node's number, from the controller's thread: the launcher kills its agent if it is here.
        self.on_abandoned: Callable[[int], None] | None = None
        self._line, self._machine = alike.launch_line(job), alike.machine()
        self._events = EventLog(job.out_dir) if job.out_dir else None

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
        if self._loop is not None:
            name = signal.Signals(signum).name
            self._loop.call_soon_threadsafe(self._finish_from_outside, f"stopped by {name}", signum)

    def waits_for_nodes(self) -> bool:
        """Not all nodes have come yet, and the job is not over."""
        return not self.done() and len(self._controller.state.members.nodes) < self._job.nodes

    def fail(self, reason: str) -> None:
        """End the job, which cannot begin."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self._controller.finish(1, reason))

    def agent_failed(self, node: int, reason: str) -> None:
        """The launcher saw an agent's process end before or without its stream ending."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._agent_failed, node, reason)

    # ---- Outbox -----------------------------------------------------------------------------------------------------

    def send(self, node: int, name: str, **fields: Any) -> None:
        stream = self._streams.get(node)
        if stream is not None:
            stream.send(name, **fields)

    def emit(self, kind: str, **fields: Any) -> None:
        if self._events is not None:
            self._events.emit(kind, **fields)

    def abandon(self, node: int) -> None:
        self.send(node, "stop", code=1, signum=0)  # what a frozen agent reads first when it thaws
        if self.on_abandoned is not None:
            self.on_abandoned(node)

    def say(self, text: str) -> None:
        print(f"fftrain: {text}", file=sys.stderr, flush=True)

    def now(self) -> float:
        return time.time()

    def finish(self, code: int, summary: str) -> None:
        self._outcome = (code, summary)
        self._begin_stop(code, 0)

    # ---- inside the loop --------------------------------------------------------------------------------------------

    def _begin_stop(self, code: int, signum: int) -> None:
        self._stop_s = _STOP_S + (self._job.shutdown_timeout_s if signum else 0.0)
        for node in self._streams:
            self.send(node, "stop", code=code, signum=signum)
        self._stopping.set()

    def _finish_from_outside(self, text: str, signum: int) -> None:
        if not self._controller.state.finished and not self._controller.state.stopping:
            self._controller.stop(text)
            self._outcome = (1, text)
            self._begin_stop(1, signum)

    def _agent_failed(self, node: int, reason: str) -> None:
        if node in self._controller.state.members.nodes:
            self._controller.node_down(node, reason)
        elif not self._controller.state.finished:
            self._controller.finish(1, f"the agent of node {node} failed to start: {reason}")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._outcome = (1, "")
        config = Settings.from_wire(self._job.config).config
        self._controller = Controller(self._job, config, self)
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
            while set(self._streams) - self._stopped and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        finally:
            ticker.cancel()
            for stream in self._streams.values():
                stream.finish()
            await server.stop(0.2)
            self._result.set_result(self._outcome)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._guard(self._controller.tick)

    def _guard(self, call: Any, *arguments: Any) -> None:
        """A bug in the controller must end the job with its traceback, not hang it."""
        try:
            call(*arguments)
        except ProtocolError:
            raise
        except Exception as error:
            import traceback

            self._controller.finish(1, f"internal error of the controller: {error}\n{traceback.format_exc()}")

    def _not_welcome(self, node: Node, hello: dict[str, Any]) -> str:
        """Why an agent that knows the secret cannot be `node`; empty if it can."""
        if hello.get("rival"):
            return f"a second launcher was started with --node-rank 0, on {node.hostname}"
        differing = alike.differences(hello.get("launch") or self._line, self._line)
        if differing:
            return f"node {node.id} ({node.hostname}) was started otherwise than node 0: {'; '.join(differing)}"
        other = self._controller.state.members.nodes.get(node.id)
        if other is not None:
            return (
                f"--node-rank {node.id} was given twice, on {other.hostname} and on {node.hostname}"
                if other.alive
                else f"node {node.id} was lost; a node cannot rejoin a running job"
            )
        if not 0 <= node.id < self._job.nodes:
            return f"node {node.id} is not one of the job's {self._job.nodes} nodes"
        return ""

    def _turned_away(self, reason: str, patience_s: float) -> None:
        """While nodes are still missing, the one that was turned away is likely one of them: the job ends, at once or
        if it has not begun in patience_s. A job that has begun goes on."""
        self.say(f"connection refused: {reason}")

        def end() -> None:
            if len(self._controller.state.members.nodes) < self._job.nodes:
                advice = "Start all nodes again, with the same options and a --node-rank of its own for each"
                self._controller.finish(1, f"{reason}. {advice}")

        assert self._loop is not None
        self._loop.call_later(patience_s, end)

    async def _session(self, stream: rpc.Stream) -> None:
        try:
            hello, our_proof = await rpc.challenge(stream, self._secret)
            node = Node(
                id=hello["node"],
                host_id=hello["host_id"],
                hostname=hello["hostname"],
                free_bytes=hello["free_bytes"],
                data_address=(hello["data_host"], hello["data_port"]),
                last_beat=time.time(),
                pid=hello["pid"],
            )
            reason = self._not_welcome(node, hello)
            if reason:
                await stream.send_now("refused", reason=reason)
                self._turned_away(reason, 0.0)
                return
        except rpc.WrongSecretError as error:
            self._turned_away(str(error), _WRONG_SECRET_S)
            return
        except (ProtocolError, asyncio.TimeoutError) as error:
            self.say(f"connection refused: {error or 'no hello in time'}")
            return
        differing = alike.differences(hello.get("machine") or self._machine, self._machine)
        if differing:
            self.say(
                f"node {node.id} ({node.hostname}) is not like node 0, and a rank that moves may compute otherwise "
                f"there: {'; '.join(differing)}"
            )
        await stream.send_now("welcome", proof=our_proof, job=self._job.to_wire())
        self._streams[node.id] = stream
        writer = asyncio.create_task(stream.pump())
        reason = "its connection closed"
        try:
            self._guard(self._controller.node_up, node)
            while (message := await stream.receive()) is not None:
                if message["t"] == "stopped":
                    self._stopped.add(node.id)
                else:
                    self._guard(self._controller.handle, node.id, message)
        except ProtocolError as error:
            reason = f"protocol error: {error}"
        except (grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError) as error:
            reason = f"its connection broke ({type(error).__name__})"
        finally:
            writer.cancel()
            self._streams.pop(node.id, None)
            self._guard(self._controller.node_down, node.id, reason)
