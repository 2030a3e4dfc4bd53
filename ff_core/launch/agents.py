"""The agent processes of one launcher: one per failure domain on this machine, started, watched and ended here.

An agent reads its orders from its standard input (see ff_core.agent.agent_main), so that the secret shows on no
command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from ff_core.contract.address import endpoint
from ff_core.contract.env import spare_env
from ff_core.contract.lifeline import PARENT_VARIABLE

AGENT_COMMAND = (sys.executable, "-m", "ff_core.agent.agent_main")


class Agents:
    """The agents of this machine. on_exit(node, exit code) is called from a thread of its own when one has ended."""

    def __init__(self, on_exit: Callable[[int, int], None], command: Sequence[str] = AGENT_COMMAND) -> None:
        self._on_exit = on_exit
        self._command = list(command)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(
        self, node: int, controller: tuple[str, int], secret: bytes, data_host: str, signals: Sequence[int],
        launch: dict[str, str], standby: bool = False, deputy: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Start the agent of failure domain `node`; -1: the controller gives it a number.

        controller: where it connects to.  data_host: this machine's address, where replicas arrive.
        launch: what this node's launcher was asked for (see ff_core.contract.alike).  standby: it is to stand by.
        deputy: where this launcher listens; None: it has all nodes of the job.
        signals: numbers that it passes on to its workers when they come by send_signal.
        To be called from the main thread: an agent dies with the thread that started it. Raises OSError.
        """
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            env={**spare_env(os.environ), PARENT_VARIABLE: str(os.getpid())},
            # A Ctrl-C at the terminal is for the launcher, which stops the job in order.
            start_new_session=True,
        )
        self._processes[node] = process
        assert process.stdin is not None
        host, port = controller
        place = endpoint(host, port)
        orders: dict[str, object] = {"controller": place, "node": node, "secret": secret.hex(), "data_host": data_host}
        orders |= {"signals": [*signals], "launch": launch, "standby": standby, "deputy": deputy}
        try:
            process.stdin.write(json.dumps(orders).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once: on_exit tells
        threading.Thread(
            target=lambda: self._on_exit(node, process.wait()), name=f"ff-agent-{node}", daemon=True
        ).start()

    def send_signal(self, signum: int) -> None:
        """Send `signum` to the agents that still run."""
        for process in self._processes.values():
            process.send_signal(signum)  # does nothing for one that has been waited for

    def kill(self, node: int) -> None:
        """SIGKILL the agent of `node`, if it is one of ours and still runs; its workers die with it."""
        if node in self._processes:
            self._processes[node].kill()

    def join(self, timeout_s: float) -> dict[int, int]:
        """Wait for all agents to end: {node: exit code}. After timeout_s they get SIGTERM, and SIGKILL 3 s later."""
        deadline = time.monotonic() + timeout_s
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes.values():
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
            if all(process.poll() is not None for process in self._processes.values()):
                break
            self.send_signal(signum)
            deadline = time.monotonic() + 3.0
        return {node: process.wait() for node, process in self._processes.items()}
