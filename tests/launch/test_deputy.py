"""Deputies and the agents that join them, over real connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ff_core.agent import joining
from ff_core.agent.agent import Agent
from ff_core.agent.joining import Uplink, join_another
from ff_core.config.settings import Settings
from ff_core.contract import rpc
from ff_core.contract.alike import launch_line
from ff_core.contract.job import JobSpec
from ff_core.controller import deputy as module
from ff_core.controller.deputy import DeputyServer
from ff_core.controller.server import ControllerServer
from ff_core.errors import ProtocolError
from ff_core.launch import torch_store
from ff_core.launch.rivals import tell_who_returns
from tests.agent.test_settings import Said, with_agent
from tests.controller.test_takeover import newest, trains

SECRET = b"a secret of sixteen"
STORE = ("127.0.0.1", 4711)


@pytest.fixture
def deputy() -> Iterator[DeputyServer]:
    server = DeputyServer(SECRET, "127.0.0.1", lambda controller: STORE, lambda *_: None)
    server.start()
    yield server
    if not server.done():
        server.close()


def place(server: DeputyServer) -> str:
    return "{}:{}".format(*server._address.result())


def dead() -> tuple[str, int]:
    """Where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1", free.getsockname()[1]


def record(**places: tuple[str, int]) -> dict[str, Any]:
    """Of a job with three nodes, of one rank each. places: node0=(host, port), ..."""
    _, content = newest(trains())
    content["line"] = {"script and its arguments": "train.py"}
    return {**content, "places": {int(name[4:]): [*where] for name, where in places.items()}}


def hello(node: int, content: dict[str, Any], **said: Any) -> dict[str, Any]:
    report = {"term": 1, "number": 1, "record": content, "heard": True, "silent": [], "epoch": 0, "halt_epoch": -1}
    report["verdict"] = [0, 0, -1]
    report |= {"ranks": [[node, f"s0-r{node}", 0, True]], "spares": {}, **said}
    usual = {"host_id": f"m{node}", "hostname": f"host{node}", "data_host": "127.0.0.1", "data_port": 1}
    return {"node": node, **usual, "free_bytes": 1 << 40, "pid": 1, "deputy": content["places"][node], "joins": report}


def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(asyncio.wait_for(run(), 60))


async def welcomed(where: str, said: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The welcome of who joins, and what comes next."""
    channel, stream, welcome = await rpc.connect(where, SECRET, said, 10)
    names = []
    for _ in range(2):
        message = await stream.receive()
        assert message is not None
        names.append(message["t"])
    await channel.close()
    return welcome, names


def test_it_takes_over_when_all_who_live_have_joined(deputy: DeputyServer) -> None:
    own = deputy._address.result()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        content = record(node0=dead(), node1=own, node2=other.getsockname())
        outcomes = together(*(welcomed(place(deputy), hello(node, content)) for node in (1, 2)))
    for node, (welcome, names) in zip((1, 2), outcomes, strict=True):
        assert welcome["node"] == node and welcome["store"] == [*STORE]
        assert names == ["record", "halt"]
    assert deputy.in_charge()
    code, summary = deputy.wait()
    assert code == 1 and "lost" in summary, "both nodes have gone, in the end"


def test_nobody_takes_over_while_a_node_may_live(deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        content = record(node0=dead(), node1=deputy._address.result(), node2=silent.getsockname())
        (outcome,) = together(welcomed(place(deputy), hello(1, content)))
    assert isinstance(outcome, rpc.RefusedError) and "node 2 does not answer, and may live" in str(outcome)
    assert not deputy.in_charge()


def test_who_has_gone_again_does_not_count(deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER_S", 1.0)
    with socket.socket() as listens:
        listens.bind(("127.0.0.1", 0))
        listens.listen()
        content = record(node0=listens.getsockname(), node1=deputy._address.result(), node2=listens.getsockname())

        async def leaves() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(welcomed(place(deputy), hello(2, content)), 0.4)

        together(leaves())
        (outcome,) = together(welcomed(place(deputy), hello(1, content)))
    assert "node 0, 2 does not answer" in str(outcome)


@pytest.mark.parametrize("change", [{"joins": {"number": 1}}, {"joins": {}}])
def test_who_says_nothing_of_use_is_not_let_in(deputy: DeputyServer, change: dict[str, Any]) -> None:
    content = record(node0=dead(), node1=deputy._address.result())
    (outcome,) = together(welcomed(place(deputy), {**hello(1, content), **change}))
    assert isinstance(outcome, ProtocolError) and not deputy.in_charge()


def test_a_wrong_secret(deputy: DeputyServer) -> None:
    async def joins() -> None:
        content = record(node0=dead(), node1=deputy._address.result())
        await rpc.connect(place(deputy), b"another of sixteen..", hello(1, content), 10)

    (outcome,) = together(joins())
    assert "does not know the job's secret" in str(outcome) and not deputy.in_charge()


def test_it_lets_nodes_in_when_it_is_in_charge(deputy: DeputyServer) -> None:
    own = deputy._address.result()
    content = record(node0=dead(), node1=own)

    async def stays(said: dict[str, Any], until: asyncio.Event) -> None:
        channel, _, _ = await rpc.connect(place(deputy), SECRET, said, 10)
        await until.wait()
        await channel.close()

    async def run() -> dict[str, Any]:
        over = asyncio.Event()
        first = asyncio.create_task(stays(hello(1, content), over))
        while not deputy.in_charge():
            await asyncio.sleep(0.01)
        later = {**hello(1, content), "node": -1, "joins": None, "standby": True, "launch": content["line"]}
        channel, _, welcome = await rpc.connect(place(deputy), SECRET, later, 10)
        with pytest.raises(rpc.RefusedError, match="the controller lives"):
            await rpc.connect(place(deputy), SECRET, hello(1, content), 10)
        over.set()
        await first
        await channel.close()
        return welcome

    welcome = asyncio.run(asyncio.wait_for(run(), 60))
    assert welcome["node"] == 3 and welcome["store"] == [*STORE], "numbers of lost nodes are not given again"


@pytest.mark.parametrize("same", [True, False])
def test_who_would_begin_the_job_again_is_told_where_it_goes_on(same: bool) -> None:
    job = JobSpec(["train.py"], 2, 1, "127.0.0.1", 1, config=Settings().to_wire())
    server = ControllerServer(job, SECRET, "127.0.0.1")
    host, port = server.start()
    store, began = torch_store.host_store("127.0.0.1", 0)
    torch_store.publish_controller(store, (host, port))
    line = launch_line(job) | ({} if same else {"script and its arguments": "another.py"})
    tell_who_returns(replace(job, master_port=began), line, ("10.0.0.7", 29500), SECRET)
    if same:
        assert server.wait() == (1, "the job goes on, with its controller at 10.0.0.7:29500")
        assert server.elsewhere == ("10.0.0.7", 29500)
    else:
        assert not server.done() and server.elsewhere is None
        server.give_up()
        server.wait()
    del store


# ---- the agent's side ----------------------------------------------------------------------------------------------


class Line:
    """Stands in for a stream: remembers."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, name: str, **fields: Any) -> None:
        self.sent.append(name)


def joining_agent(content: dict[str, Any], check: Callable[[Agent, Uplink, Any], None]) -> None:
    """check(agent, its uplink, what join_another returned)."""

    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        agent.allegiance.on_record(1, content)
        agent.allegiance.on_heard(agent.allegiance.beats())
        first: Any = Line()
        uplink = Uplink(first)
        said = {**hello(1, content), "deputy": None}
        line = await join_another(agent, uplink, SECRET, said)
        uplink.send("stopped")
        check(agent, uplink, line)
        assert first.sent == [], "nothing is said to the controller that is gone"
        if line is not None:
            await line[0].close()

    with_agent(body)


def test_an_agent_passes_over_the_dead(deputy: DeputyServer) -> None:
    def check(agent: Agent, uplink: Uplink, line: Any) -> None:
        assert line is not None and agent.workers.store == [*STORE]
        assert line[1]._queue.qsize() == 1

    joining_agent(record(node0=dead(), node1=deputy._address.result()), check)


def test_an_agent_joins_nobody_behind_one_who_may_live(
    deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(joining, "_ASK_S", 0.2)
    monkeypatch.setattr(joining, "_CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        joining_agent(
            record(node0=silent.getsockname(), node1=deputy._address.result()),
            lambda agent, uplink, line: pytest.fail("it joined somebody") if line is not None else None,
        )
    assert not deputy.in_charge()


def test_what_is_said_meanwhile_is_kept_for_the_next_controller() -> None:
    first, second = Line(), Line()
    uplink = Uplink(first)  # type: ignore[arg-type]
    uplink.send("commit")
    uplink.hold()
    uplink.send("worker_dying")
    uplink.send("worker_exit")
    uplink.goes_to(second)  # type: ignore[arg-type]
    uplink.send("inventory")
    assert first.sent == ["commit"] and second.sent == ["worker_dying", "worker_exit", "inventory"]
