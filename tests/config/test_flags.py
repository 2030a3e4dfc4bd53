"""FailoverConfig as flags: one for every field, made from the schema."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from ff_core.config import flags
from ff_core.config.find import find_settings
from ff_core.config.schema import FailoverConfig
from ff_core.errors import ConfigError


def parsed(*words: str) -> FailoverConfig | None:
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    return flags.from_namespace(parser.parse_args(list(words)))


def test_every_field_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    for name in FailoverConfig.model_fields:
        if name not in ("enabled", "persist"):
            assert f"--ff-{name.replace('_', '-')}" in known
    assert {"--ff-failover", "--ff-config", "--ff-persist-directory", "--ff-persist-period"} <= known
    assert "memory" in parser.format_help()


def test_nothing_without_the_switch() -> None:
    assert parsed() is None
    assert parsed("--ff-interval", "3") is None
    assert flags.from_words(["--ff-interval", "3"]) is None


def test_values_are_numbers_sizes_words_and_truths() -> None:
    words = ["--ff-failover", "--ff-interval", "3", "--ff-chunk-bytes=64KiB", "--ff-commit", "relaxed", "--ff-pacing"]
    words += ["--ff-checksum", "false", "--ff-hang-timeout-s", "auto", "--ff-heartbeat-timeout-s", "7.5"]
    words += ["--ff-secret", "1234567890123456", "--ff-persist-directory", "/x", "--ff-persist-period", "5"]
    config = parsed(*words)
    assert config is not None and config.enabled
    assert (config.interval, config.chunk_bytes, config.commit) == (3, 65536, "relaxed")
    assert (config.pacing, config.checksum, config.hang_timeout_s) == (True, False, "auto")
    assert (config.heartbeat_timeout_s, config.secret) == (7.5, "1234567890123456")
    assert (config.persist.directory, config.persist.period) == ("/x", 5)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "ff.json"
    file.write_text(json.dumps({"ff_failover": {"interval": 4, "replicas": 2}}))
    config = parsed("--ff-failover", "--ff-config", str(file), "--ff-interval", "3")
    assert config is not None and (config.interval, config.replicas) == (3, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ff-interval", "0"), r"command line: ff_failover.interval = 0: allowed: a whole number >= 1"),
        (("--ff-commit", "maybe"), r"ff_failover.commit = 'maybe': allowed: \"strict\" or \"relaxed\""),
        (("--ff-persist-period", "3"), "give both"),
        (("--ff-config", "/no/such/file"), "/no/such/file: No such file"),
    ],
)
def test_mistakes_are_explained(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed("--ff-failover", *words)


def test_the_launcher_reads_them_from_the_script_s_arguments(tmp_path: Path) -> None:
    words = ["--lr", "1e-3", "--ff-failover", "--num-layers", "2", "--ff-spares", "2", "--bf16", "data"]
    assert find_settings(words, None, None).config.spares == 2
    assert find_settings(words, None, 1).config.spares == 1
    assert find_settings([word for word in words if word != "--ff-failover"], None, None).config.spares == 0
    file = tmp_path / "ff.json"
    file.write_text('{"spares": 3}')
    with pytest.raises(ConfigError, match=r"the script's --ff-failover: ff_failover.spares = 2, but .*ff.json has 3"):
        find_settings(words, str(file), None)
