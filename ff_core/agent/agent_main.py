"""An agent's process: `python -m ff_core.agent.agent_main`, its orders as one JSON line on standard input.

{"controller": "host:port", "node": 0, "secret": "<hex>", "data_host": "127.0.0.1", "signals": [15],
"launch": {"--nnodes": "1"}, "standby": false, "deputy": ["127.0.0.1", 4711]}. deputy: where its launcher listens; null
if it is the only one of the job. node -1: the controller gives it a number. The secret never is on a
command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from ff_core.agent.agent import Agent
from ff_core.agent.data_port import DataPort
from ff_core.agent.joining import Line, Uplink, join_another
from ff_core.agent.kernel_log import KernelLog
from ff_core.contract import alike, rpc
from ff_core.contract.job import LOST_CODE, JobSpec
from ff_core.contract.lifeline import die_with_parent
from ff_core.copy.memory import free_bytes
from ff_core.errors import FailoverError

_CONNECT_S = 60.0
#: So long after a stream broke for sending, what has come by it is still read.
_READ_S = 0.2


def host_id() -> str:
    """Equal for all agents that share one machine's memory."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


async def run(orders: dict[str, Any]) -> int:
    """Be the agent until the controller says stop (the job's exit code) or counts this node as lost, or is gone and no
    other one takes over (LOST_CODE); workers never outlive it."""
    secret, node = bytes.fromhex(orders["secret"]), int(orders["node"])

    def say(text: str) -> None:
        print(f"fftrain: {_name(node)}: {text}", file=sys.stderr, flush=True)

    # The job is known only after the welcome, the data port's address must be in the hello: so the port opens first.
    port = DataPort(secret, say)
    host, number = await port.open(orders["data_host"])
    hello = {
        "node": node,
        "host_id": host_id(),
        "hostname": socket.gethostname(),
        "data_host": host,
        "data_port": number,
        "free_bytes": free_bytes(),
        "pid": os.getpid(),
        "launch": orders["launch"],
        "machine": alike.machine(),
        "standby": orders["standby"],
        **({"deputy": orders["deputy"]} if orders["deputy"] else {}),
    }
    channel, stream, welcome = await rpc.connect(orders["controller"], secret, hello, _CONNECT_S)
    job, node = JobSpec.from_wire(welcome["job"]), welcome["node"]
    uplink = Uplink(stream)
    agent = Agent(node, job, secret, port, uplink.send, say, KernelLog())
    agent.workers.store = welcome.get("store")
    agent.settle(job.config)
    loop = asyncio.get_running_loop()
    # In a session of its own: the terminal's Ctrl-C goes to the launcher. What comes here is the launcher's order to
    # leave the job; the workers get the same signal.
    for number in {signal.SIGINT, signal.SIGTERM, *orders["signals"]}:
        loop.add_signal_handler(number, agent.signalled, int(number))
    line: Line | None = (channel, stream)
    agent.allegiance.obeys(orders["controller"], orders["deputy"])
    while line is not None:
        channel, stream = line
        problem = await _serve(stream, agent)
        await channel.close()
        if problem is None:
            break
        say(f"the controller is gone{problem and f' ({problem})'}")
        line = await _unless_done(agent, join_another(agent, uplink, secret, {**hello, "node": node}))
    code = agent.exit_code
    if not agent.done.is_set():
        say("ending this node's workers")
        code = LOST_CODE
    await agent.workers.end_all(0.0)
    await port.close()
    return code


async def _serve(stream: rpc.Stream, agent: Agent) -> str | None:
    """One controller, until the agent is done: None. Or until the controller is gone: the problem, empty if it said
    nothing of any."""
    tasks = [
        asyncio.create_task(stream.pump()),
        asyncio.create_task(_beat(stream, agent)),
        asyncio.create_task(_receive(stream, agent)),
        asyncio.create_task(agent.done.wait()),
        asyncio.create_task(agent.allegiance.until_silent()),
    ]
    finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if tasks[3] in finished:
        await asyncio.sleep(0.05)  # "stopped" leaves
    elif tasks[2] not in finished:
        with suppress(Exception, asyncio.TimeoutError):  # what it had sent before is read, and carried out
            await asyncio.wait_for(asyncio.shield(tasks[2]), _READ_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if agent.done.is_set():
        return None
    if tasks[4] in finished:
        return "it is silent"
    problems = [task.exception() for task in finished if not task.cancelled()]
    return next((str(problem) for problem in problems if problem is not None), "")


async def _unless_done(agent: Agent, joining: Coroutine[Any, Any, Line | None]) -> Line | None:
    """The line to the next controller, unless there is none, or the agent is told to end meanwhile."""
    task, done = asyncio.ensure_future(joining), asyncio.ensure_future(agent.done.wait())
    await asyncio.wait((task, done), return_when=asyncio.FIRST_COMPLETED)
    done.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


def _name(node: int) -> str:
    return f"node {node}" if node >= 0 else f"this node ({socket.gethostname()})"


async def _receive(stream: rpc.Stream, agent: Agent) -> None:
    while (message := await stream.receive()) is not None:
        agent.allegiance.reads = False
        await agent.handle(message)
        agent.allegiance.reads = True


async def _beat(stream: rpc.Stream, agent: Agent) -> None:
    while True:
        agent.settled.clear()
        stream.send("beat", count=agent.allegiance.beats(), free_bytes=free_bytes(), progress=agent.pulse.progress())
        with suppress(asyncio.TimeoutError):  # a new interval holds at once
            await asyncio.wait_for(agent.settled.wait(), agent.state.config.heartbeat_interval_s)


def main() -> int:
    die_with_parent()
    orders = json.loads(sys.stdin.readline())
    sys.stdin.close()
    try:
        return asyncio.run(run(orders))
    except (FailoverError, OSError, grpc.RpcError) as error:
        print(f"fftrain: {_name(orders['node'])}: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
