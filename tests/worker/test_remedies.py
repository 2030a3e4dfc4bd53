"""Advice in errors is the framework's: what the adapters have, and that the rest has none of its own."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from ff_core.config import file, flags
from ff_core.config.schema import FailoverConfig
from ff_deepspeed.remedies import OF_DEEPSPEED
from ff_megatron.remedies import OF_OWN_LOOP, OF_PRETRAIN

ROOT = Path(__file__).parents[2]
OF_ONE = re.compile(r'global_steps|client_state|curr_iteration|batches\(|iterations?\(\)|--ff-|"ff_failover"')


@pytest.mark.parametrize("room", ["ff_core/state", "ff_core/worker"])
def test_no_other_message_has_words_of_one_framework(room: str) -> None:
    found = []
    for path in sorted((ROOT / room).glob("*.py")):
        tree = ast.parse(path.read_text())
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said]
        found += [f"{path.name}:{one.lineno}" for one in texts if type(one.value) is str and OF_ONE.search(one.value)]
    assert found == []


@pytest.mark.parametrize("mine", [OF_PRETRAIN, OF_OWN_LOOP])
def test_megatrons_has_none_of_deepspeeds(mine: tuple[str, ...]) -> None:
    assert not re.search(r"[Dd]eep[Ss]peed|engine|client_state|ff_failover", " ".join(mine))
    assert "Megatron" in " ".join(mine) and "egatron" not in " ".join(OF_DEEPSPEED)


def test_settings_that_are_advised_are_settings(tmp_path: Path) -> None:
    """For pretrain() a flag; for the others a field, in a block or in a file."""
    config = flags.from_words(["--ff-failover", *OF_PRETRAIN.unsaved.split()[1:]])
    assert config is not None and config.unsaved_variables == "ignore"
    for text in (OF_DEEPSPEED.unsaved, OF_OWN_LOOP.unsaved):
        name, value = re.findall(r'"(\w+)"', text)[:2]
        (tmp_path / "ff.json").write_text(json.dumps({name: value}))
        fields = file.load_fields(str(tmp_path / "ff.json"))
        assert FailoverConfig.from_dict(fields).unsaved_variables == "ignore"
