"""A signal that the launcher of one node passes on: the controller is asked first, and has the last word."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from ff_core.agent.agent import Agent
from tests.agent.test_settings import Said, with_agent


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_the_controller_is_asked(signum: int) -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        agent.signalled(signum)
        assert sent == [("drain", {"signum": signum})] and not agent.state.stopping
        assert agent.on_stay(signum, "nobody has room") is None
        await asyncio.wait_for(agent.done.wait(), 20)
        assert sent[-1] == ("stopped", {}) and agent.exit_code == 1
        agent.signalled(signum)
        assert len(sent) == 2, "it is on its way"

    with_agent(body)


def test_ctrl_c_asks_nobody() -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        agent.signalled(signal.SIGINT)
        await asyncio.wait_for(agent.done.wait(), 20)
        assert sent == [("stopped", {})]

    with_agent(body)


@pytest.mark.parametrize("code", [0, 1])
def test_a_drained_node_ends_with_the_code_that_it_is_told(code: int) -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        ending = agent.on_stop(code, 0, drained=True)
        assert ending is not None
        await ending
        assert agent.exit_code == code and agent.done.is_set()

    with_agent(body)
