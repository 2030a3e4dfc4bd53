"""The table of who handles what: it fits the definitions, or the process does not start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.contract.dispatch import Dispatch, offered
from ff_core.contract.messages import AGENT_TO_WORKER, BEFORE_ROLE, MESSAGES, Definition, Route, make
from ff_core.errors import ProtocolError


@pytest.fixture(autouse=True)
def two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol of "ask" (agent to worker) and "answer" (back)."""
    for name in list(MESSAGES):
        monkeypatch.delitem(MESSAGES, name)
    monkeypatch.setitem(MESSAGES, "ask", Definition(("agent", "worker"), {"n": ((int,), True)}))
    monkeypatch.setitem(MESSAGES, "answer", Definition(("worker", "agent"), {}))


class Part:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_ask(self, n: int) -> None:
        self.heard.append(n)

    def helper(self) -> None: ...


def test_one_handler_each() -> None:
    part = Part()
    dispatch = Dispatch(AGENT_TO_WORKER, offered(part))
    dispatch.of(make(AGENT_TO_WORKER, "ask", n=3))(3)
    assert part.heard == [3]


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ([], "agent to worker: no handler for ask"),
        ([{"ask": print}, {"ask": print}], "two handlers for ask"),
        ([{"ask": print, "answer": print}], "a handler that nobody needs for answer"),
        ([{"ask": print, "tell": print}], "a handler that nobody needs for tell"),
    ],
)
def test_tables_that_do_not_fit(tables: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        Dispatch(AGENT_TO_WORKER, *tables)


def test_what_somebody_else_takes_in() -> None:
    dispatch = Dispatch(AGENT_TO_WORKER, elsewhere={"ask"})
    with pytest.raises(ProtocolError, match="worker got 'ask', which agent must not send"):
        dispatch.of(make(AGENT_TO_WORKER, "ask", n=3))
    with pytest.raises(ProtocolError, match="nobody needs for ask"):
        Dispatch(AGENT_TO_WORKER, {"ask": print}, elsewhere={"ask"})


def test_the_other_direction_is_not_handled() -> None:
    dispatch = Dispatch(Route("worker", "agent"), {"answer": print})
    with pytest.raises(ProtocolError, match="agent got 'ask'"):
        dispatch.of(make(AGENT_TO_WORKER, "ask", n=3))


def test_a_process_without_a_rank_has_three_messages() -> None:
    """`wait_for_role` understands these and no others; what a worker hears later has a table."""
    from ff_core.worker.worker_main import wait_for_role

    assert {"preload", "chosen", "role"} == BEFORE_ROLE
    link = SimpleNamespace(receive=lambda timeout_s: ({"t": "halt"}, []))
    with pytest.raises(ProtocolError, match="message 'halt' before a role; allowed: chosen, preload, role"):
        wait_for_role(link, print)  # type: ignore[arg-type]
