"""A silent controller at real connections: deputies that a majority joins, and the one that was cut off."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ff_core.agent.agent import Agent
from ff_core.agent.joining import Uplink
from ff_core.config.settings import Settings
from ff_core.contract import rpc
from ff_core.contract.alike import launch_line
from ff_core.contract.job import JobSpec
from ff_core.controller import deputy as module
from ff_core.controller.deputy import DeputyServer
from ff_core.controller.server import ControllerServer
from ff_core.launch.rivals import tell_who_returns
from tests.launch.test_deputy import (
    SECRET,
    dead,
    deputy,
    hello,
    joining_agent,
    place,
    record,
    together,
    welcomed,
)

__all__ = ["deputy"]  # a fixture


def test_a_majority_takes_over_from_who_is_silent(deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 0 may live. Nodes 1 and 2 are two of three, and have not heard it for long."""
    monkeypatch.setattr(module, "OTHERS_S", 1e9)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        content = record(node0=silent.getsockname(), node1=deputy._address.result(), node2=silent.getsockname())
        said = {"heard": False, "silent": [0]}
        outcomes = together(*(welcomed(place(deputy), hello(node, content, **said)) for node in (1, 2)))
    assert [names for _, names in outcomes] == [["record", "halt"]] * 2
    assert deputy.in_charge()
    deputy.wait()


def test_a_majority_waits_for_others_and_not_for_ever(deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 0 answers node 2, perhaps."""
    monkeypatch.setattr(module, "OTHERS_S", 0.5)
    monkeypatch.setattr(module, "TOGETHER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        content = record(node0=silent.getsockname(), node1=deputy._address.result(), node2=silent.getsockname())
        outcomes = together(
            welcomed(place(deputy), hello(1, content, silent=[0])), welcomed(place(deputy), hello(2, content))
        )
    assert [names for _, names in outcomes] == [["record", "halt"]] * 2
    deputy.wait()


def test_elders_are_asked_too(deputy: DeputyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = [*silent.getsockname()]
        content = record(node0=silent.getsockname(), node1=deputy._address.result(), node2=silent.getsockname())
        content["elders"] = [dict.fromkeys(range(5), where)]
        said = {"silent": [0]}
        outcomes = together(*(welcomed(place(deputy), hello(node, content, **said)) for node in (1, 2)))
    assert all("those who have come are no majority" in str(outcome) for outcome in outcomes)
    assert not deputy.in_charge()


def test_who_comes_with_a_lower_term_comes_again(deputy: DeputyServer) -> None:
    """As the agent does: it is told which term."""
    content = record(node0=dead(), node1=deputy._address.result(), node2=("127.0.0.1", 1))

    def body(agent: Agent, uplink: Uplink, line: Any) -> None:
        assert line is not None and agent.allegiance.report()["term"] == 8  # type: ignore[index]

    async def higher() -> None:
        await welcomed(place(deputy), hello(2, content, term=7))

    other = threading.Thread(target=lambda: together(higher()))
    other.start()
    while not deputy._election.joined:
        time.sleep(0.01)
    joining_agent(content, body)
    other.join()


def test_a_controller_that_is_cut_off_says_so_and_is_told_where_the_job_is() -> None:
    job = JobSpec(["train.py"], 1, 1, "127.0.0.1", 1, config=Settings().to_wire())
    server = ControllerServer(job, SECRET, "127.0.0.1")
    address = server.start()
    line = launch_line(job)

    async def run() -> list[str]:
        first = {**hello(0, {"places": {0: None}}), "joins": None, "launch": line, "deputy": None}
        channel, stream, _ = await rpc.connect(place(server), SECRET, first, 10)
        assert server._controller is not None
        server._controller.state.finished = True  # as who decides so does
        server._call(server.fenced, "nobody is heard")
        names = [message["t"] async for message in messages(stream)]
        with pytest.raises(rpc.RefusedError, match="the controller here has been cut off: nobody is heard"):
            await rpc.connect(place(server), SECRET, {**first, "node": -1}, 10)
        await channel.close()
        return names

    names = asyncio.run(asyncio.wait_for(run(), 60))
    assert names[-1] == "stop" and not server.done()
    tell_who_returns(job, line, ("10.0.0.7", 29500), SECRET, [address])
    assert server.wait()[0] == 1 and server.elsewhere == ("10.0.0.7", 29500)


async def messages(stream: rpc.Stream) -> AsyncIterator[dict[str, Any]]:
    """Up to `stop`."""
    while (message := await stream.receive()) is not None:
        yield message
        if message["t"] == "stop":
            return
