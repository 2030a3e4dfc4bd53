"""An agent works by the settings of the job, also by what a script has brought after the agent's start."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.agent import agent_main
from ff_core.agent.agent import Agent
from ff_core.agent.data_port import DataPort
from ff_core.agent.kernel_log import KernelLog
from ff_core.agent.spares import SparePool
from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import SCRIPT, Settings
from ff_core.contract.job import JobSpec
from ff_core.copy import transports
from ff_core.copy.connect import shared_name

Said = list[tuple[str, dict[str, Any]]]
LATE = Settings().joined(
    Settings.given(FailoverConfig(transport="shm", halt_timeout_s=2.0, spares=3, heartbeat_interval_s=0.25), SCRIPT)
)


def with_agent(body: Callable[[Agent, Said, Callable[[], bool]], Awaitable[None]]) -> None:
    """Run `body` with an agent of an emulated node that was started with defaults, what it sends, and a function that
    says whether it offers shared memory."""

    async def run() -> None:
        sent: Said = []
        port = DataPort(b"x" * 16, lambda text: None)
        address = await port.open("127.0.0.1")
        job = JobSpec(["train.py"], 2, 1, "", 0, emulated=True, config=Settings().to_wire())
        kernel = KernelLog("/dev/null")
        agent = Agent(
            0, job, b"x" * 16, port, lambda name, **fields: sent.append((name, fields)), lambda text: None, kernel
        )
        agent.settle(job.config)

        def offers() -> bool:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                return probe.connect_ex(shared_name(address)) == 0

        try:
            await body(agent, sent, offers)
        finally:
            await port.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_the_script_brought_holds_before_anybody_connects() -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        assert not offers()
        await agent.on_arenas(0, LATE.to_wire(), {}, {})
        assert sent == [("arenas_ready", {"epoch": 0})] and offers()
        assert agent.state.config == LATE.config
        started: list[str] = []

        async def start(uid: str, rank: int) -> Any:
            started.append(uid)
            return SimpleNamespace(send=lambda name, **fields: None)

        spares = SparePool(agent.state, start)
        spares.preload({"modules": [], "calls": []})
        await asyncio.gather(*spares._starting)
        assert len(started) == 3
        await agent.on_arenas(0, Settings().to_wire(), {}, {})  # the script was started again, with another block
        assert not offers()
        await agent.on_arenas(0, LATE.to_wire(), {}, {})
        assert offers()

    with_agent(body)


def test_a_standby_keeps_as_many_spares_as_a_node_has_ranks() -> None:
    """Until it has taken a rank: then it is a node like others, which here has no spares."""

    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        started: list[str] = []

        async def start(uid: str, rank: int) -> Any:
            started.append(uid)
            return SimpleNamespace(send=lambda name, **fields: None)

        spares = SparePool(agent.state, start)
        await agent.on_start(0, 0, [], [], standby=False)
        spares.preload({"modules": [], "calls": []})
        assert not spares._starting
        await agent.on_start(0, 0, [], [], standby=True)
        spares.refill()
        await asyncio.gather(*spares._starting)
        assert len(started) == agent.state.job.nproc_per_node
        await agent.on_halt(1, [0])
        agent.workers.spawn = lambda uid, rank: _process()  # type: ignore[method-assign]
        await agent.on_assign(1, 0, "e1-r0", [], False)
        assert not agent.state.standby

    with_agent(body)


async def _process() -> Any:
    return SimpleNamespace(process=SimpleNamespace(pid=1), rank=0, uid="e1-r0", gone=False, stuck=False)


def test_a_transport_that_is_not_here_ends_the_job_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "missing_for_ucx", lambda: "no libucx")

    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        wanted = Settings.given(FailoverConfig(transport="ucx"), SCRIPT)
        await agent.on_arenas(0, wanted.to_wire(), {}, {})
        ((name, fields),) = sent
        assert name == "arenas_failed" and fields["reason"].startswith("transport = 'ucx': no libucx")

    with_agent(body)


def test_a_replacement_starts_with_the_settings_of_the_training() -> None:
    """A first process does not: its script may say something else after a restart."""

    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        await agent.on_arenas(0, LATE.to_wire(), {}, {})
        roles: list[dict[str, Any]] = []
        worker: Any = SimpleNamespace(
            uid="u", page=SimpleNamespace(fd=-1), notify_fd=-1, role_given=lambda: None,
            send=lambda name, fds, **fields: roles.append(fields),
        )  # fmt: skip
        by_uid: Any = agent.workers.by_uid
        by_uid["u"] = worker
        for newcomer in (True, False):
            agent.workers.give_role(worker, 1, epoch=0, newcomer=newcomer, injections=[], arena=None)
        assert [Settings.from_wire(role["job"]["config"]) for role in roles] == [LATE, Settings()]

    with_agent(body)


def test_a_new_heartbeat_interval_holds_at_once() -> None:
    """Not after the beat that the old one, of hours, has put off."""

    async def run() -> None:
        beats: asyncio.Queue[Any] = asyncio.Queue()
        agent: Any = SimpleNamespace(
            state=SimpleNamespace(
                config=FailoverConfig(heartbeat_interval_s=1e5, heartbeat_timeout_s=1e6, verdict_timeout_s=1e7)
            ),
            settled=asyncio.Event(), pulse=SimpleNamespace(progress=dict), allegiance=SimpleNamespace(beats=lambda: 1),
        )  # fmt: skip
        stream: Any = SimpleNamespace(send=lambda name, **fields: beats.put_nowait(name))
        task = asyncio.create_task(agent_main._beat(stream, agent))
        await beats.get()
        agent.state.config = FailoverConfig(heartbeat_interval_s=0.001)
        agent.settled.set()
        for _ in range(3):
            await beats.get()
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
