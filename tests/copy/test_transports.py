from __future__ import annotations

import pytest

from ff_core.copy import transports
from ff_core.errors import ConfigError


def test_auto_tries_all_that_the_engine_has_the_fastest_first() -> None:
    assert transports.candidates("auto") == transports.available() == ("shm", "tcp")
    assert transports.candidates("tcp") == ("tcp",)
    assert transports.candidates("shm") == ("shm",)


def test_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "available", lambda: ("tcp",))
    with pytest.raises(ConfigError, match=r"transport = 'shm'.*has tcp.*allowed"):
        transports.candidates("shm")


@pytest.mark.parametrize(
    ("wanted", "emulated", "offered"),
    [
        ("auto", False, True),
        ("auto", True, False),  # emulated nodes stand for different hosts
        ("shm", True, True),  # unless told otherwise
        ("shm", False, True),
        ("tcp", False, False),
        ("tcp", True, False),
    ],
)
def test_who_offers_shared_memory(wanted: str, emulated: bool, offered: bool) -> None:
    assert transports.listens_shared(wanted, emulated) is offered
