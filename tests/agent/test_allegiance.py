"""What an agent tells the next controller, and when it joins none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.agent import allegiance as module
from ff_core.agent.agent import Agent
from ff_core.agent.allegiance import Allegiance
from ff_core.config.schema import FailoverConfig
from tests.agent.test_settings import Said, with_agent

PLACES = {2: ["host2", 12], 0: ["host0", 10], 1: ["host1", 11]}


def worker(rank: int, **fields: Any) -> SimpleNamespace:
    usual = {"uid": f"u{rank}", "since": 0, "restored": True, "is_ready": True, "dying": False, "gone": False}
    return SimpleNamespace(rank=rank, **usual | fields)


def with_allegiance(body: Callable[[Allegiance], None]) -> None:
    async def run(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        body(agent.allegiance)

    with_agent(run)


def test_without_a_record_nobody_is_joined() -> None:
    def body(allegiance: Allegiance) -> None:
        assert allegiance.report() is None and allegiance.places() == []
        allegiance.on_record(3, {"places": PLACES})
        assert allegiance.report() is not None
        assert allegiance.places() == [(0, "host0", 10), (1, "host1", 11), (2, "host2", 12)]
        allegiance.forget_record()
        assert allegiance.report() is None

    with_allegiance(body)


def test_the_record_is_dropped_where_a_death_is_no_failover() -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        agent.allegiance.on_record(1, {"places": PLACES})
        agent.on_may_leave(0, 5)
        assert agent.allegiance.report() is None
        agent.allegiance.on_record(2, {"places": PLACES})
        await agent.on_start(1, 1, [], [], standby=True)
        assert agent.allegiance.report() is None
        agent.allegiance.on_record(3, {"places": PLACES})
        assert agent.allegiance.report() is not None
        ending = agent.on_stop(0, 0)
        assert agent.allegiance.report() is None, "the job is over"
        assert ending is not None
        await ending

    with_agent(body)


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(allegiance: Allegiance) -> None:
        state: Any = allegiance._state
        state.workers = SimpleNamespace(
            ranks=lambda: [worker(1), worker(2, dying=True), worker(3, gone=True), worker(0, since=4, restored=False)],
            spares=lambda: [worker(-1, uid="s1"), worker(-1, uid="s2", is_ready=False)],
        )
        state.epoch, state.halt_epoch, state.verdict = 4, 5, (3, 4, 17)
        allegiance.on_record(7, {"places": PLACES})
        assert allegiance.report() == {
            "term": 1,
            "number": 7,
            "record": {"places": PLACES},
            "heard": False,
            "silent": [],
            "epoch": 4,
            "halt_epoch": 5,
            "verdict": [3, 4, 17],
            "ranks": [[1, "u1", 0, True], [0, "u0", 4, False]],
            "spares": {"s1": True, "s2": False},
        }

    with_allegiance(body)


def test_a_node_whose_heartbeats_were_not_answered_may_have_been_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def body(allegiance: Allegiance) -> None:
        limit = allegiance._state.config.heartbeat_timeout_s
        assert not allegiance.was_heard()
        first = allegiance.beats()
        clock[0] += 1.0
        second = allegiance.beats()
        assert (first, second) == (1, 2)
        allegiance.on_heard(first)  # what counts is when it was sent, not when its answer came
        clock[0] += limit - 1.5
        assert allegiance.was_heard()
        clock[0] += 1.0
        assert not allegiance.was_heard()
        allegiance.on_heard(second)
        assert allegiance.was_heard()

    with_allegiance(body)


async def leaves(allegiance: Allegiance) -> bool:
    """Whether the controller may be left within half a second."""
    try:
        await asyncio.wait_for(allegiance.until_silent(), 0.5)
    except asyncio.TimeoutError:
        return False
    return True


def test_a_controller_that_does_not_answer_is_left_where_others_are_a_majority() -> None:
    async def body(agent: Agent, sent: Said, offers: Callable[[], bool]) -> None:
        allegiance = agent.allegiance
        agent.state.config = FailoverConfig(heartbeat_interval_s=0.1, heartbeat_timeout_s=0.2)
        allegiance.obeys("host0:10", ["host1", 11])
        assert not await leaves(allegiance), "there is no record"
        two = {number: place for number, place in PLACES.items() if number < 2}
        allegiance.on_record(1, {"places": two})
        assert not await leaves(allegiance), "one of two"
        allegiance.on_record(2, {"places": PLACES})
        allegiance.on_heard(allegiance.beats())
        allegiance.reads = False
        assert not await leaves(allegiance), "a message is being handled: answers wait behind it"
        allegiance.reads = True
        assert await leaves(allegiance)
        assert allegiance.is_silent("host0:10") and not allegiance.is_silent("host1:11")
        allegiance.on_heard(allegiance.beats())
        assert not allegiance.is_silent("host0:10")
        allegiance.obeys("host1:11", ["host1", 11])
        assert not await leaves(allegiance), "it would end with its own launcher"
        assert sent == [("recorded", {"number": 1}), ("recorded", {"number": 2})]

    with_agent(body)


def test_each_who_is_joined_hears_a_higher_term() -> None:
    def body(allegiance: Allegiance) -> None:
        state: Any = allegiance._state
        state.epoch, state.halt_epoch = 1027, 2048
        allegiance.on_record(7, {"places": PLACES})
        terms = [(allegiance.report(silent=[0], term=term) or {})["term"] for term in (0, 0, 9, 0)]
        assert terms == [3, 4, 9, 10]
        allegiance.on_record(20 << 32, {"places": PLACES})
        assert (allegiance.report() or {})["term"] == 21

    with_allegiance(body)
