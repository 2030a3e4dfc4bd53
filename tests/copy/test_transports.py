from __future__ import annotations

import pytest

from ff_core.copy import transports
from ff_core.errors import ConfigError


def test_auto_is_the_first_that_the_engine_has() -> None:
    assert transports.choose("auto") == transports.available()[0]
    assert transports.choose("tcp") == "tcp"


def test_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "available", lambda: ("tcp",))
    with pytest.raises(ConfigError, match=r"transport = 'ucx'.*has tcp.*allowed"):
        transports.choose("ucx")
