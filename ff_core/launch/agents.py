"""The agent processes of one launcher: one per failure domain on this machine, started, waited for and ended here.

An agent reads what it needs from its standard input, as one msgpack map, so that the secret shows on no command line:
node (int), controller (host, port), secret (bytes), local_addr (str: address other nodes reach this machine at).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgpack

from ff_core.launch.env import spare_env
from ff_core.launch.lifeline import PARENT_VARIABLE

AGENT_COMMAND = (sys.executable, "-m", "ff_core.control.agent_main")


class Agents:
    """The agents of this machine. `start` must be called from the main thread: an agent dies with the thread that made it."""

    def __init__(self, command: Sequence[str] = AGENT_COMMAND) -> None:
        self._command = list(command)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int, controller: tuple[str, int], secret: bytes, local_addr: str) -> None:
        """Start the agent of failure domain `node`, which connects to `controller`. Raises OSError."""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            env={**spare_env(os.environ), PARENT_VARIABLE: str(os.getpid())},
            # A Ctrl-C at the terminal is for the launcher, which stops the job in order.
            start_new_session=True,
        )
        self._processes[node] = process
        assert process.stdin is not None
        spec = {"node": node, "controller": list(controller), "secret": secret, "local_addr": local_addr}
        try:
            process.stdin.write(msgpack.packb(spec, use_bin_type=True))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; whoever waits for it will see that

    def watch(self, all_gone: Callable[[dict[int, int]], None]) -> None:
        """Call all_gone({node: exit code}) from a thread once every agent has ended."""

        def run() -> None:
            all_gone({node: process.wait() for node, process in self._processes.items()})

        threading.Thread(target=run, name="ff-agents", daemon=True).start()

    def send_signal(self, signum: int) -> None:
        """Send `signum` to the agents that still run."""
        for process in self._processes.values():
            process.send_signal(signum)  # does nothing for one that has been waited for

    def join(self, timeout_s: float) -> dict[int, int]:
        """Wait until all agents have ended; after timeout_s they get SIGTERM, and SIGKILL 3 s later. {node: exit code}"""
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
