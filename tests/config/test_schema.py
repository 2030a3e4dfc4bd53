from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_core import FailoverConfig
from ff_core.config.table import reference_table
from ff_core.errors import ConfigError


def refusal(fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        FailoverConfig.from_dict(fields, source="ds.json")
    return str(caught.value)


def test_defaults_need_no_thought() -> None:
    config = FailoverConfig.from_dict({"enabled": True})
    assert (config.enabled, config.replicas, config.interval, config.commit) == (True, 1, "auto", "relaxed")
    assert (config.chunk_bytes, config.memory_limit_bytes, config.spares) == (1 << 20, 0, 0)
    assert FailoverConfig().enabled is False


def test_round_trip() -> None:
    config = FailoverConfig.from_dict(
        {
            "enabled": True,
            "hang_timeout_s": 4,
            "memory_limit_bytes": "2GiB",
            "bandwidth_limit_bytes_per_s": "10Gbit/s",
            "persist": {"directory": "ckpt", "period": 100},
            "secret": "0123456789abcdef",
        }
    )
    assert config.memory_limit_bytes == 2**31
    assert config.bandwidth_limit_bytes_per_s == 1_250_000_000
    assert FailoverConfig.from_dict(config.to_dict()) == config


def test_updated_wins_and_is_checked() -> None:
    config = FailoverConfig.from_dict({"spares": 1, "replicas": 2})
    changed = config.updated({"spares": 3}, source="--spares")
    assert (changed.spares, changed.replicas, config.spares) == (3, 2, 1)
    with pytest.raises(ConfigError, match=r"--spares: ff_failover\.spares = -1"):
        config.updated({"spares": -1}, source="--spares")


def test_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FailoverConfig().replicas = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"replicas": -1}, ["ff_failover.replicas = -1", "whole number >= 0"]),
        ({"replicas": True}, ["ff_failover.replicas = True", "whole number"]),
        ({"replicas": "1"}, ["ff_failover.replicas = '1'"]),
        ({"replicas": 1.0}, ["ff_failover.replicas = 1.0"]),
        ({"enabled": 1}, ["ff_failover.enabled = 1", "true or false"]),
        ({"interval": 0}, ["ff_failover.interval = 0", ">= 1"]),
        ({"interval": "often"}, ["ff_failover.interval = 'often'", 'a whole number >= 1, or "auto"']),
        ({"overhead_budget": 0.0}, ["ff_failover.overhead_budget = 0.0", "a number > 0 and <= 1"]),
        ({"overhead_budget": 1.5}, ["ff_failover.overhead_budget = 1.5", "a number > 0 and <= 1"]),
        ({"commit": "eager"}, ["ff_failover.commit = 'eager'", '"strict" or "relaxed"']),
        ({"transport": "rdma"}, ["ff_failover.transport = 'rdma'", '"auto", "shm", "tcp" or "ucx"']),
        ({"chunk_bytes": 5000}, ["ff_failover.chunk_bytes = 5000", "multiple of 4096"]),
        ({"chunk_bytes": 0}, ["ff_failover.chunk_bytes = 0"]),
        ({"chunk_bytes": "3 foo"}, ["ff_failover.chunk_bytes = '3 foo'", "unknown unit 'foo'"]),
        ({"memory_limit_bytes": "lots"}, ["ff_failover.memory_limit_bytes = 'lots'", "64GiB"]),
        ({"heartbeat_interval_s": 0}, ["ff_failover.heartbeat_interval_s = 0", "seconds > 0"]),
        ({"heartbeat_timeout_s": float("inf")}, ["ff_failover.heartbeat_timeout_s = inf"]),
        ({"tcp_streams": 0}, ["ff_failover.tcp_streams = 0", 'from 1 to 16, or "auto"']),
        ({"tcp_streams": 17}, ["ff_failover.tcp_streams = 17", 'from 1 to 16, or "auto"']),
        ({"tcp_streams": "many"}, ["ff_failover.tcp_streams = 'many'", 'from 1 to 16, or "auto"']),
        ({"hang_timeout_s": "never"}, ["ff_failover.hang_timeout_s = 'never'", '"auto"']),
        ({"hang_timeout_s": -1}, ["ff_failover.hang_timeout_s = -1", '"auto"']),
        ({"persist_dir": "here"}, ["ff_failover.persist_dir = 'here'", "an absolute path"]),
        ({"persist_interval_s": -1}, ["ff_failover.persist_interval_s = -1", "seconds >= 0"]),
        ({"persist_keep": 0}, ["ff_failover.persist_keep = 0", "a whole number >= 1"]),
        ({"persist": 3}, ["ff_failover.persist = 3", "directory"]),
        ({"persist": {"period": -1}}, ["ff_failover.persist.period = -1"]),
    ],
)
def test_bad_value_names_field_value_and_what_is_allowed(fields: dict[str, Any], parts: list[str]) -> None:
    message = refusal(fields)
    assert message.startswith("ds.json: ")
    assert "allowed" in message
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"heartbeat_interval_s": 5, "heartbeat_timeout_s": 6},
            ["heartbeat_interval_s = 5.0", "heartbeat_timeout_s = 6.0", "two intervals"],
        ),
        ({"verdict_timeout_s": 2}, ["verdict_timeout_s = 2.0", "heartbeat_timeout_s = 5.0"]),
        ({"hang_timeout_s": 0.7}, ["hang_timeout_s = 0.7", "heartbeat_interval_s = 0.5"]),
        ({"memory_limit_bytes": "1MiB"}, ["memory_limit_bytes = 1048576", "chunk_bytes = 1048576"]),
        ({"persist_dir": "/x", "checksum": False}, ["persist_dir = '/x'", "checksum = False"]),
        ({"persist": {"directory": "x"}}, ["ff_failover.persist: directory = 'x' and period = 0"]),
        ({"persist": {"period": 3}}, ["ff_failover.persist: directory = '' and period = 3"]),
    ],
)
def test_impossible_relation_names_both_fields(fields: dict[str, Any], parts: list[str]) -> None:
    message = refusal(fields)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("fields", "nearest"),
    [
        ({"enabld": True}, "'enabled'"),
        ({"memory_limit": 1}, "'memory_limit_bytes'"),
        ({"heartbeat_timout_s": 1}, "'heartbeat_timeout_s'"),
        ({"persist": {"perod": 1}}, "'period'"),
    ],
)
def test_unknown_key_names_the_nearest(fields: dict[str, Any], nearest: str) -> None:
    message = refusal(fields)
    assert "no such field" in message
    assert f"did you mean {nearest}?" in message


def test_unknown_key_unlike_any_lists_all() -> None:
    for fields in ({"zzz": 1}, {1: 2}):
        message = refusal(fields)
        assert "no such field" in message
        assert "allowed: enabled, replicas" in message


def test_every_mistake_is_listed() -> None:
    lines = refusal({"replicas": -1, "spares": "x", "colour": 1}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ds.json: ff_failover.") for line in lines)


def test_not_an_object() -> None:
    assert 'ds.json: "ff_failover" = True' in refusal(True)


def test_secret_is_never_shown() -> None:
    assert "hunter2" not in refusal({"secret": "hunter2"})
    assert "0123456789abcdef" not in repr(FailoverConfig(secret="0123456789abcdef"))
    assert "0123456789abcdef" not in refusal({"secret": "0123456789abcdef", "verdict_timeout_s": 1})


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([1])


@given(st.dictionaries(st.sampled_from(list(FailoverConfig.model_fields)) | st.text(max_size=8), values, max_size=4))
def test_any_block_is_accepted_or_explained(fields: dict[str, Any]) -> None:
    try:
        config = FailoverConfig.from_dict(fields, source="ds.json")
    except ConfigError as error:
        assert all(line.startswith("ds.json: ff_failover") for line in str(error).splitlines())
        assert str(error)
    else:
        assert FailoverConfig.from_dict(config.to_dict()) == config


def test_reference_table_has_every_field() -> None:
    rows = reference_table().splitlines()[2:]
    names = [row.split("`")[1] for row in rows]
    expected = [name for name in FailoverConfig.model_fields if name != "persist"]
    assert sorted(names) == sorted([*expected, "persist.directory", "persist.period"])
    assert all(len(cell.strip()) > 3 for row in rows for cell in (row.split(" | ")[4],))


def test_reference_table_from_the_command_line_without_torch() -> None:
    code = (
        "import runpy, sys; runpy.run_module('ff_core.config.table', run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "| `heartbeat_timeout_s` |" in done.stdout


def test_documentation_has_the_current_table() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/configuration.md"
    assert page.read_text().endswith(f"\n\n{reference_table()}\n"), "write it anew: python -m ff_core.config.table"
