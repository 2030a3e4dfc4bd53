"""Where the job's settings come from before it starts, and mistakes in them."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

import pytest

from ff_core.config.find import find_settings
from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import Settings
from ff_core.errors import ConfigError


def found(arguments: str | list[str], ff_config: str | None = None, spares: int | None = None) -> Settings:
    words = arguments.split() if isinstance(arguments, str) else arguments
    return find_settings(words, ff_config, spares, environ={})


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def write(name: str, fields: object) -> None:
        (tmp_path / name).write_text(json.dumps(fields))

    write("ds.json", {"train_batch_size": 4, "ff_failover": {"enabled": True, "spares": 2}})
    write("same.json", {"ff_failover": {"enabled": True, "spares": 2, "interval": 3}})
    write("other.json", {"ff_failover": {"enabled": False, "spares": 5}})
    write("none.json", {"train_batch_size": 4})
    write("bad.json", {"ff_failover": {"enabled": True, "replicas": -1}})
    write("inside.json", {"zero_optimization": {"ff_failover": {"enabled": True}}})
    write("block.json", {"enabled": True, "interval": 3})
    write("clash.json", {"enabled": True, "spares": 1})
    write("list.json", [1, 2])
    (tmp_path / "broken.json").write_text("{'a")
    (tmp_path / "comments.json").write_text('{\n# words\n"ff_failover": {"enabled": true}\n}')
    (tmp_path / "model.yaml").write_text("model: {layers: 3, ff_failover")
    (tmp_path / "large.json").write_text(json.dumps({"x": "y" * (1 << 20), "ff_failover": {"enabled": True}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        "--deepspeed_config ds.json",
        "--deepspeed-config=ds.json",
        "--deepscale_config ds.json",
        "--deepspeed --deepspeed_config ds.json",
        "--deepspeed ds.json --bf16",  # Hugging Face's Trainer
        "--deepspeed=ds.json",
        "--x 1 --config ds.json",
        "--ds_config ds.json",
        "--ds_config=ds.json",
        "-c ds.json",
        "--my-own-name ds.json",
        "train ds.json",
        "ds.json",
    ],
)
def test_found_in_the_scripts_arguments(arguments: str) -> None:
    settings = found(arguments)
    assert settings.config.enabled and settings.config.spares == 2
    assert settings.told() == {"spares": (2, "ds.json")}


def test_found_where_accelerate_looks() -> None:
    assert find_settings([], None, None, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}).config.spares == 2
    for nothing in ("none", "", "none.json"):
        assert find_settings([], None, None, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": nothing}) == Settings()


def test_options_win() -> None:
    settings = found("--deepspeed_config ds.json", spares=0)
    assert settings.config.enabled and settings.config.spares == 0
    assert found("--deepspeed_config ds.json", spares=1).told() == {"spares": (1, "--spares")}


def test_a_file_for_us_alone_bare_or_not() -> None:
    assert found([], "block.json", 1).config == FailoverConfig(enabled=True, interval=3, spares=1)
    assert found([], "ds.json").config.spares == 2


@pytest.mark.parametrize(
    "arguments",
    ["", "--deepspeed_config none.json", "--deepspeed_config", "--config model.yaml", "--config list.json",
     "--deepspeed_config made_by_the_script.json", "--config broken.json", "--data large.json", "inside.json",
     "--text {ff_failover", "--name " + "x" * 5000, "--zero \0"],
)  # fmt: skip
def test_nothing_found(arguments: str) -> None:
    assert found(arguments) == Settings()


def test_fields_of_several_places_are_joined() -> None:
    config = found("--deepspeed_config ds.json", "block.json").config
    assert config == FailoverConfig(enabled=True, interval=3, spares=2)
    settings = found("--deepspeed_config ds.json --again same.json", "block.json")
    assert settings.told() == {"interval": (3, "block.json"), "spares": (2, "ds.json")}


def test_a_field_with_two_values_is_refused() -> None:
    message = r"ds.json: ff_failover.spares = 2, but clash.json has 1; allowed: give it in one place"
    with pytest.raises(ConfigError, match=message):
        found("--deepspeed_config ds.json", "clash.json")


def test_the_block_of_an_engine_that_is_not_to_be_protected() -> None:
    assert found("--a ds.json --b other.json").config.spares == 2
    assert found("--b other.json --a ds.json").config.spares == 2
    assert not found("--b other.json").config.enabled


def test_text_instead_of_a_file() -> None:
    def encoded(fields: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()

    text = encoded({"ff_failover": {"enabled": True}})
    assert found(["--deepspeed_config", text]).config.enabled
    assert found([f"--deepspeed_config={text}"]).config.enabled
    with pytest.raises(ConfigError, match=r"--deepspeed_config: ff_failover.enabled = 3"):
        found(["--deepspeed_config", encoded({"ff_failover": {"enabled": 3}})])
    plain = json.dumps({"ff_failover": {"enabled": True, "spares": 1}})
    assert found(["--deepspeed", plain]).told() == {"spares": (1, "--deepspeed")}


@pytest.mark.skipif(importlib.util.find_spec("hjson") is None, reason="hjson comes with deepspeed, which is not here")
def test_hjson_as_deepspeed_takes_it() -> None:
    assert found("--deepspeed_config comments.json").config.enabled
    assert found("--deepspeed comments.json").config.enabled


@pytest.mark.parametrize(
    ("arguments", "ff_config", "message"),
    [
        ("--deepspeed_config bad.json", None, r"bad.json: ff_failover.replicas = -1: allowed"),
        ("--deepspeed_config inside.json", None, r'inside.json: "ff_failover" is inside "zero_optimization": it'),
        ("--config bad.json", None, r"bad.json: ff_failover.replicas = -1: allowed"),
        ("--deepspeed bad.json", None, r"bad.json: ff_failover.replicas = -1: allowed"),
        ("--deepspeed_config broken.json", None, r"broken.json: not JSON"),
        ("", "gone.json", r"gone.json: No such file"),
        ("", "broken.json", r"broken.json: not JSON"),
        ("", "list.json", r"list.json: .*allowed: an object"),
    ],
)
def test_mistakes_name_the_file(arguments: str, ff_config: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        found(arguments, ff_config)
