"""Who has the controller, and how the others find it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from ff_core.errors import ConfigError
from ff_core.launch import meeting, rivals, torch_store


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting takes no time. The list has how long each wait would have taken."""
    waits: list[float] = []
    now = lambda: 1000.0 + sum(waits)  # noqa: E731
    fake: Any = type("time", (), {"monotonic": staticmethod(now), "sleep": staticmethod(waits.append)})
    monkeypatch.setattr(meeting, "time", fake)
    return waits


def test_the_endpoints_machine_has_it_and_the_second_launcher_there_finds_the_first(port: int) -> None:
    first = meeting.meet("127.0.0.1", port, 5.0, may_host=True)
    assert first.store is not None and first[1:] == ("127.0.0.1", port)
    torch_store.publish_controller(first.store, ("127.0.0.1", 77))
    assert meeting.meet("127.0.0.1", port, 5.0, may_host=True) == (None, "127.0.0.1", 77)
    assert meeting.meet("127.0.0.1", port, 5.0, may_host=False) == (None, "127.0.0.1", 77)


def test_another_program_at_the_port_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_ANSWER_S", 0.5)  # after which a program that says nothing is no store
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        taken.settimeout(0)
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken"):
            meeting.meet("127.0.0.1", port, 60.0, may_host=True)


def test_who_comes_first_asks_again_and_says_so(
    port: int, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=f"no controller at 127.0.0.1:{port} within 65 s. It runs on the machine"):
        meeting.meet("127.0.0.1", port, 65.0, may_host=False)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"fftrain: no controller at 127.0.0.1:{port} yet; asking again for {s} s" for s in (65, 35, 5)]
    assert sum(clock) == 65


def test_a_name_that_is_not_known_yet_is_asked_for_again(
    port: int, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = socket.getaddrinfo

    def later(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "job-0.job" and len(clock) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known("127.0.0.1" if host == "job-0.job" else host, *rest, **options)

    monkeypatch.setattr(torch_store.socket, "getaddrinfo", later)
    monkeypatch.setattr(meeting, "_means_loopback", lambda address: True)
    monkeypatch.setattr(torch_store, "host_store", lambda address, number: ("store", number))
    assert meeting.meet("job-0.job", port, 60.0, may_host=True) == ("store", "job-0.job", port)
    assert "(address 'job-0.job': Name or service not known)" in capsys.readouterr().err and len(clock) == 3


def test_a_name_that_here_means_the_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's /etc/hosts has it: node 0 would listen where nobody else can come."""
    monkeypatch.setattr(torch_store, "interface_of", lambda address: "127.0.1.1")
    with pytest.raises(ConfigError, match=r"on this machine the name means 127.0.1.1, where no other node can come"):
        meeting.is_own("node7")
    assert meeting.is_own("127.0.1.1") and meeting.is_own("localhost")


def test_a_lost_node_asks_again_unless_the_job_is_over(
    port: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert meeting.find_again("127.0.0.1", port, 60.0, lambda: False) is None, "nobody listens there: the job is over"
    assert clock == []

    def cut_off(*_: Any) -> socket.socket:
        raise TimeoutError

    with monkeypatch.context() as off:
        off.setattr(meeting.socket, "create_connection", cut_off)
        assert meeting.find_again("127.0.0.1", port, 60.0, lambda: False) is None and sum(clock) == 60
        assert meeting.find_again("127.0.0.1", port, 60.0, lambda: len(clock) > 70) is None and len(clock) == 71
    store, at = torch_store.host_store("127.0.0.1", 0)
    torch_store.publish_controller(store, ("127.0.0.1", 77))
    assert meeting.find_again("127.0.0.1", at, 60.0, lambda: False) == ("127.0.0.1", 77)


def test_another_machines_address_is_not_this_ones() -> None:
    assert not meeting.is_own("192.0.2.7")
