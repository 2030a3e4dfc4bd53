"""Where the job's configuration comes from, and mistakes in it."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

import pytest

from ff_core.config.find import find_config
from ff_core.config.schema import FailoverConfig
from ff_core.errors import ConfigError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def write(name: str, fields: object) -> None:
        (tmp_path / name).write_text(json.dumps(fields))

    write("ds.json", {"train_batch_size": 4, "ff_failover": {"enabled": True, "spares": 2}})
    write("none.json", {"train_batch_size": 4})
    write("bad.json", {"ff_failover": {"enabled": True, "replicas": -1}})
    write("block.json", {"enabled": True, "interval": 3})
    write("list.json", [1, 2])
    (tmp_path / "broken.json").write_text("{'a")
    (tmp_path / "comments.json").write_text('{\n# words\n"ff_failover": {"enabled": true}\n}')
    (tmp_path / "model.yaml").write_text("model: {layers: 3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    ["--deepspeed_config ds.json", "--deepspeed-config=ds.json", "--x 1 --config ds.json", "--ds_config ds.json"],
)
def test_found_in_the_scripts_arguments(arguments: str) -> None:
    config = find_config(arguments.split(), None, None)
    assert config.enabled and config.spares == 2


def test_options_win() -> None:
    config = find_config(["--deepspeed_config", "ds.json"], None, 0)
    assert config.enabled and config.spares == 0


def test_a_file_for_us_alone_bare_or_not() -> None:
    assert find_config([], "block.json", 1) == FailoverConfig(enabled=True, interval=3, spares=1)
    assert find_config([], "ds.json", None).spares == 2


def test_nothing_found() -> None:
    for arguments in ([], ["--deepspeed_config", "none.json"], ["--deepspeed_config"], ["--config", "model.yaml"],
                      ["--deepspeed_config", "made_by_the_script.json"], ["--config", "list.json"]):  # fmt: skip
        assert find_config(arguments, None, None) == FailoverConfig()


def test_two_files_must_agree() -> None:
    assert find_config(["--deepspeed_config", "ds.json"], "ds.json", None).spares == 2
    with pytest.raises(ConfigError, match=r"block.json and ds.json have different"):
        find_config(["--deepspeed_config", "ds.json"], "block.json", None)


def test_base64_as_deepspeed_takes_it() -> None:
    text = base64.urlsafe_b64encode(json.dumps({"ff_failover": {"enabled": True}}).encode()).decode()
    assert find_config(["--deepspeed_config", text], None, None).enabled
    text = base64.urlsafe_b64encode(json.dumps({"ff_failover": {"enabled": 3}}).encode()).decode()
    with pytest.raises(ConfigError, match=r"--deepspeed_config: ff_failover.enabled = 3"):
        find_config(["--deepspeed_config", text], None, None)


@pytest.mark.skipif(importlib.util.find_spec("hjson") is None, reason="hjson comes with deepspeed, which is not here")
def test_hjson_as_deepspeed_takes_it() -> None:
    assert find_config(["--deepspeed_config", "comments.json"], None, None).enabled


@pytest.mark.parametrize(
    ("arguments", "ff_config", "message"),
    [
        (["--deepspeed_config", "bad.json"], None, r"bad.json: ff_failover.replicas = -1: allowed"),
        (["--config", "bad.json"], None, r"bad.json: ff_failover.replicas = -1: allowed"),
        (["--deepspeed_config", "broken.json"], None, r"broken.json: not JSON"),
        ([], "gone.json", r"gone.json: No such file"),
        ([], "broken.json", r"broken.json: not JSON"),
        ([], "list.json", r"list.json: .*allowed: an object"),
    ],
)
def test_mistakes_name_the_file(arguments: list[str], ff_config: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_config(arguments, ff_config, None)
