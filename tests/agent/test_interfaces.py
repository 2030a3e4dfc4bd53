"""Whoever stands in for a part, in the product or in a test, says so and has all of its methods."""

from __future__ import annotations

import inspect

import pytest

from ff_core.agent.agent import Agent
from ff_core.agent.data_port import DataPort
from ff_core.agent.interfaces import Page, Port, PortOwner, Process, RankProcess, WorkerPool
from ff_core.agent.process import WorkerProcess
from ff_core.agent.workers import Worker, Workers
from ff_core.comm.host import CommHost
from ff_core.controller.controller import Controller
from ff_core.controller.door import Inside
from ff_core.controller.outbox import Outbox
from ff_core.controller.server import ControllerServer
from ff_core.controller.state import JobControl
from ff_core.copy.page import StatusPage
from ff_core.worker.host import WorkerHost
from tests.comm.harness import Host as CommStandin
from tests.controller.harness import Recorder
from tests.controller.sim_agent import SimPort
from tests.controller.sim_memory import SimPage
from tests.controller.sim_process import SimProcess, SimWorkers
from tests.controller.simulation import World

#: These cannot say what they are: StatusPage lies below the agent; a worker's host is there before torch, and
#: importing `ff_core.comm` imports torch.
UNDECLARED = (StatusPage, WorkerHost)
#: interface -> those that are it.
IMPLEMENTATIONS: list[tuple[type, list[type]]] = [
    (Process, [WorkerProcess, SimProcess]),
    (RankProcess, [Worker, SimProcess]),
    (WorkerPool, [Workers, SimWorkers]),
    (PortOwner, [Agent]),
    (Port, [DataPort, SimPort]),
    (Page, [SimPage, StatusPage]),
    (JobControl, [Controller]),
    (Outbox, [ControllerServer, Recorder, World]),
    (Inside, [ControllerServer]),
    (CommHost, [WorkerHost, CommStandin]),
]


@pytest.mark.parametrize(("interface", "classes"), IMPLEMENTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_declared_and_complete(interface: type, classes: list[type]) -> None:
    methods = interface.__abstractmethods__  # type: ignore[attr-defined]
    assert methods
    for cls in classes:
        assert cls in UNDECLARED or interface in cls.__mro__, f"{cls.__name__} does not say that it is a {interface}"
        assert not inspect.isabstract(cls), f"{cls.__name__} lacks {cls.__abstractmethods__}"  # type: ignore[attr-defined]
        for name in methods:
            if isinstance(getattr(interface, name), property):
                assert hasattr(cls, name), f"{cls.__name__}.{name}"
                continue
            wanted, given = (inspect.signature(getattr(owner, name)).parameters for owner in (interface, cls))
            assert list(given) == list(wanted), f"{cls.__name__}.{name}"
            for key, parameter in wanted.items():
                assert given[key].kind is parameter.kind and given[key].default == parameter.default
            of_both = {inspect.iscoroutinefunction(getattr(owner, name)) for owner in (interface, cls)}
            assert len(of_both) == 1, f"{cls.__name__}.{name}: async in one of them only"


def test_an_interface_that_is_not_complete_cannot_be_made() -> None:
    class Half(Page):
        def load(self, word: str) -> int:
            return 0

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
