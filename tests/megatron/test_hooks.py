"""The hooks in a process of its own: without --ff-failover Megatron runs as it is, with it errors come at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.jobs import ENV

HERE = Path(__file__).parent
TRAIN = HERE / "train_tiny.py"


def python(code: str) -> subprocess.CompletedProcess[str]:
    path = [str(HERE), str(HERE / "standin"), str(HERE.parents[1]), ENV["PYTHONPATH"]]
    env = {**ENV, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200, check=False
    )


def test_hooks_replace_what_is_looked_up_and_bind_by_name() -> None:
    done = python(
        "import cuda_on_cpu, megatron.training, megatron.training.training as t\n"
        "plain = t.train\n"
        "from ff_megatron import hooks\n"
        "hooks.install(); first = t.train; hooks.install()\n"
        "assert t.train is first and t.train.__wrapped__ is plain\n"
        "assert megatron.training.pretrain is t.pretrain\n"
        "bound = hooks._bind(lambda a, b=2, *, c=3: None, (1,), {'c': 4})\n"
        "assert dict(bound.arguments) == {'a': 1, 'b': 2, 'c': 4}\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_spare_imports_what_lies_in_the_checkout() -> None:
    standin = str(HERE / "standin")
    done = python(
        "import sys, cuda_on_cpu, megatron.training\n"
        "from ff_megatron import preload\n"
        "root, names = preload.from_checkout()\n"
        f"assert root == {standin!r}, root\n"
        "assert 'megatron.training.training' in names and 'megatron.core' not in names\n"
        f"sys.path[:] = [p for p in sys.path if p != {standin!r}]; before = list(sys.path)\n"
        "for name in names: del sys.modules[name]\n"
        "preload.load(root, [*names, 'megatron.training.nothing'])\n"
        "assert set(names) <= set(sys.modules) and sys.path == before\n"
    )
    assert done.returncode == 0, done.stderr
    assert "megatron.training.nothing did not import" in done.stderr


def test_a_version_without_what_is_needed_is_refused_by_name() -> None:
    done = python(
        "import cuda_on_cpu, megatron.training, megatron.training.training as t\n"
        "del t.train_step\n"
        "from ff_megatron import hooks\n"
        "hooks.install()\n"
    )
    assert done.returncode != 0
    assert "megatron.training.training has no train_step" in done.stderr
