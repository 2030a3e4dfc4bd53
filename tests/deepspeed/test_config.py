"""The "ff_failover" block of a DeepSpeed configuration, as DeepSpeed holds it."""

from __future__ import annotations

import pytest

from ff_core.errors import ConfigError
from ff_deepspeed import config


def test_absent_block_is_none() -> None:
    assert config.read({"train_batch_size": 8}) is None


def test_block_is_found() -> None:
    found = config.read({"train_batch_size": 8, "ff_failover": {"enabled": True, "interval": 3}})
    assert found is not None and found.enabled and found.interval == 3


def test_wrong_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"DeepSpeed configuration: .*intervall.*did you mean 'interval'"):
        config.read({"ff_failover": {"enabled": True, "intervall": 2}})


def test_block_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'"ff_failover" is inside "zero_optimization".*top level'):
        config.read({"zero_optimization": {"stage": 1, "ff_failover": {"enabled": True}}})
