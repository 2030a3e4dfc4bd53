"""The controller with which a job begins, as a running service."""

from __future__ import annotations

import time
from dataclasses import replace

from ff_core.config.settings import Settings
from ff_core.contract import rpc
from ff_core.contract.job import JobSpec
from ff_core.controller.controller import Controller
from ff_core.controller.door import Door
from ff_core.controller.membership import Node
from ff_core.controller.service import Service
from ff_core.observe.events import EventLog


class ControllerServer(Service):
    """On node 0."""

    def __init__(self, job: JobSpec, secret: bytes, host: str, port: int = 0) -> None:
        super().__init__(host, port)
        self._begun: JobSpec = job
        self._job = job
        self._events = EventLog(job.out_dir) if job.out_dir else None
        self._door = Door(job, secret, self)

    def waits_for_nodes(self) -> bool:
        """Not all nodes have come yet, and the job is not over."""
        return not self.done() and self._door.size is None

    def abandon(self, node: int) -> None:
        super().abandon(node)
        self._door.lost(node)

    def _close(self, reason: str) -> None:
        self._door.close(reason)

    def _look(self) -> None:
        self._door.look(time.monotonic())

    def let_in(self, node: Node, stream: rpc.Stream) -> None:
        """See Inside. With the first node the job starts."""
        if self._controller is None:
            assert self._door.size is not None
            self._job = replace(self._begun, nodes=self._door.size)
            self._controller = Controller(self._job, Settings.from_wire(self._job.config).config, self)
            self._controller.state.line = self._door.line
        super().let_in(node, stream)

    async def _session(self, stream: rpc.Stream) -> None:
        await self._through(self._door, stream)
