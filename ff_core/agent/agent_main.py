"""An agent's process: `python -m ff_core.agent.agent_main`, its orders as one JSON line on standard input.

{"controller": "host:port", "node": 0, "secret": "<hex>", "data_host": "127.0.0.1", "signals": [15],
"launch": {"--nnodes": "1"}, "standby": false}. node -1: the controller gives it a number. The secret never is on a
command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from ff_core.agent.agent import Agent
from ff_core.agent.data_port import DataPort
from ff_core.contract import alike, rpc
from ff_core.contract.job import LOST_CODE, JobSpec
from ff_core.contract.lifeline import die_with_parent
from ff_core.copy.memory import free_bytes
from ff_core.errors import FailoverError

_CONNECT_S = 60.0


def host_id() -> str:
    """Equal for all agents that share one machine's memory."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


async def run(orders: dict[str, Any]) -> int:
    """Be the agent until the controller says stop (the job's exit code) or counts this node as lost, or is gone
    (LOST_CODE); workers never outlive it."""
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
    }
    channel, stream, welcome = await rpc.connect(orders["controller"], secret, hello, _CONNECT_S)
    job, node = JobSpec.from_wire(welcome["job"]), welcome["node"]
    agent = Agent(node, job, secret, port, stream.send, say)
    agent.settle(job.config)
    tasks = [
        asyncio.create_task(stream.pump()),
        asyncio.create_task(_beat(stream, agent)),
        asyncio.create_task(_receive(stream, agent)),
        asyncio.create_task(agent.done.wait()),
    ]
    loop = asyncio.get_running_loop()
    # In a session of its own: the terminal's Ctrl-C goes to the launcher. What comes here is the launcher's order to
    # leave the job; the workers get the same signal.
    for number in {signal.SIGINT, signal.SIGTERM, *orders["signals"]}:
        loop.add_signal_handler(number, agent.signalled, int(number))
    finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    code = agent.exit_code
    if tasks[3] not in finished:
        problem = next((task.exception() for task in finished if task.exception() is not None), None)
        say(f"the controller is gone{f' ({problem})' if problem else ''}; ending this node's workers")
        await agent.workers.end_all(0.0)
        code = LOST_CODE
    else:
        await asyncio.sleep(0.05)  # "stopped" leaves
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await agent.workers.end_all(0.0)
    await port.close()
    await channel.close()
    return code


def _name(node: int) -> str:
    return f"node {node}" if node >= 0 else f"this node ({socket.gethostname()})"


async def _receive(stream: rpc.Stream, agent: Agent) -> None:
    while (message := await stream.receive()) is not None:
        await agent.handle(message)


async def _beat(stream: rpc.Stream, agent: Agent) -> None:
    while True:
        agent.settled.clear()
        stream.send("beat", free_bytes=free_bytes(), progress=agent.progress())
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
