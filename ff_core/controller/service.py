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
from ff_core.contract import rpc
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import make
from ff_core.controller.controller import Controller
from ff_core.controller.membership import Node
from ff_core.errors import ProtocolError
from ff_core.observe.events import EventLog

_TICK_S = 0.1
_STOP_S = 15.0


class ControllerServer:
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
        """End the job because of a signal: exit code 128 + signum."""
        if self._loop is not None:
            name = signal.Signals(signum).name
            self._loop.call_soon_threadsafe(self._finish_from_outside, 128 + signum, f"stopped by {name}", signum)

    def agent_failed(self, node: int, reason: str) -> None:
        """The launcher saw an agent's process end before or without its stream ending."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._agent_failed, node, reason)

    # ---- Outbox -----------------------------------------------------------------------------------------------------

    def send(self, node: int, name: str, **fields: Any) -> None:
        stream = self._streams.get(node)
        if stream is not None:
            stream.send(make(name, **fields))

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
        for node in self._streams:
            self.send(node, "stop", code=code, signum=signum)
        self._stopping.set()

    def _finish_from_outside(self, code: int, text: str, signum: int) -> None:
        if not self._controller.finished:
            self._controller.finish(code, text)

    def _agent_failed(self, node: int, reason: str) -> None:
        if node in self._controller.members.nodes:
            self._controller.node_down(node, reason)
        elif not self._controller.finished:
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
            deadline = time.monotonic() + _STOP_S
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
            known = self._controller.members.nodes
            if node.id in known or not 0 <= node.id < self._job.nodes:
                await stream.send_now(
                    make("refused", reason=f"node {node.id} is taken, lost or not one of {self._job.nodes}")
                )
                raise ProtocolError(f"a second agent said it was node {node.id}")
        except (ProtocolError, asyncio.TimeoutError) as error:
            self.say(f"connection refused: {error or 'no hello in time'}")
            return
        await stream.send_now(make("welcome", proof=our_proof, job=self._job.to_wire()))
        self._streams[node.id] = stream
        writer = asyncio.create_task(stream.pump())
        reason = "its connection closed"
        try:
            self._guard(self._controller.node_up, node)
            while (message := await stream.receive()) is not None:
                if message["t"] == "stopped":
                    self._stopped.add(node.id)
                self._guard(self._controller.handle, node.id, message)
        except ProtocolError as error:
            reason = f"protocol error: {error}"
        except (grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError) as error:
            reason = f"its connection broke ({type(error).__name__})"
        finally:
            writer.cancel()
            self._streams.pop(node.id, None)
            self._guard(self._controller.node_down, node.id, reason)
