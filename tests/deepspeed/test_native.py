"""A patched DeepSpeed in one process: nothing of ours without the block, the block parsed, hooks put in once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.launch.cli import main
from tests.deepspeed.tested import tested_only
from tests.e2e.jobs import ENV, LEAN
from tests.patching.copies import copy_deepspeed

ROOT = Path(__file__).parents[2]
pytestmark = tested_only  # fftrain patch knows no other


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = copy_deepspeed(tmp_path_factory.mktemp("patched"))
    assert main(["patch", "deepspeed", str(site)]) == 0
    return site


def python(site: Path, code: str, first: str = "", **environment: str) -> str:
    """stdout of a process that runs `first`, imports the patched DeepSpeed, and runs `code`."""
    begin = f"import sys\n{first}\nimport deepspeed\nassert deepspeed.__file__.startswith({str(site)!r})\n"
    paths = os.pathsep.join([str(site), str(ROOT), LEAN])
    env = {**ENV, "DS_ACCELERATOR": "cpu", "PYTHONPATH": paths, **environment}
    done = subprocess.run(
        [sys.executable, "-c", begin + code], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OURS = "print(sorted({name.partition('.')[0] for name in sys.modules if name.startswith('ff_')}))\n"
WRAPPED = """
def depth(f):
    return 1 + depth(f.__wrapped__) if hasattr(f, '__wrapped__') else 0
engine = deepspeed.DeepSpeedEngine
print(depth(engine.__init__), depth(engine.forward), depth(engine._take_model_step))
"""
CONFIG = "{'train_micro_batch_size_per_gpu': 1, 'gradient_accumulation_steps': 1%s}"


def test_without_the_block_nothing_of_ours_is_imported(site: Path) -> None:
    plain = CONFIG % ""
    code = f"config = deepspeed.DeepSpeedConfig({plain})\nprint(hasattr(config, 'ff_failover_config'))\n{OURS}{WRAPPED}"
    assert python(site, code).splitlines()[-3:] == ["False", "[]", "0 0 0"]


def test_the_block_is_parsed_and_needs_us(site: Path) -> None:
    code = f"""
sys.modules['ff_deepspeed'] = None  # as where it is not installed
try:
    deepspeed.DeepSpeedConfig({CONFIG % ", 'ff_failover': {'enabled': False}"})
except ModuleNotFoundError as error:
    print('missing', error.name)
del sys.modules['ff_deepspeed']
config = deepspeed.DeepSpeedConfig({CONFIG % ", 'ff_failover': {'enabled': True, 'interval': 3}"})
print(config.ff_failover_config.enabled, config.ff_failover_config.interval)
{OURS}{WRAPPED}
try:
    deepspeed.DeepSpeedConfig({CONFIG % ", 'ff_failover': {'enabled': True, 'interval': 0}"})
except ValueError as error:
    print(error)
"""
    lines = [line for line in python(site, code).splitlines() if not line.startswith("[20")]
    assert lines[0] == "missing ff_deepspeed"
    assert lines[1] == "True 3"
    assert lines[2:4] == ["['ff_core', 'ff_deepspeed']", "1 1 1"]
    assert "interval = 0" in lines[4]


@pytest.mark.parametrize(
    "first",
    ["", "import ff_deepspeed", "from ff_core.worker.hooks import default_hooks\ndefault_hooks()"],
    ids=["alone", "script-imports-us", "import-hooks"],
)
def test_hooks_go_in_once(site: Path, first: str) -> None:
    """In a process of `fftrain run`, whoever else puts them in."""
    assert python(site, WRAPPED, first, FF_UID="u1").splitlines()[-1] == "1 1 1"
