"""The "ff_failover" block of a DeepSpeed configuration."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from ff_core.errors import ConfigError
from ff_deepspeed import config


def test_absent_block_is_none() -> None:
    assert config.read({"train_batch_size": 8}) is None


@pytest.mark.parametrize("how", ["dict", "file", "path", "base64"])
def test_block_is_found_however_deepspeed_gets_it(how: str, tmp_path: Path) -> None:
    whole = {"train_batch_size": 8, "ff_failover": {"enabled": True, "interval": 3}}
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(whole))
    given = {
        "dict": whole,
        "file": str(file),
        "path": file,
        "base64": base64.urlsafe_b64encode(json.dumps(whole).encode()).decode(),
    }[how]
    found = config.read(given)
    assert found is not None
    assert found.enabled
    assert found.interval == 3


def test_wrong_field_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"ff_failover": {"enabled": True, "intervall": 2}}))
    with pytest.raises(ConfigError, match=r"ds\.json.*intervall.*did you mean 'interval'"):
        config.read(file)


def test_block_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'"ff_failover" is inside "zero_optimization".*top level'):
        config.read({"zero_optimization": {"stage": 1, "ff_failover": {"enabled": True}}})


def test_what_is_no_configuration_at_all() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere\.json'.*allowed: a JSON file"):
        config.read("nowhere.json")
