"""Outside `fftrain run` everything is a plain pass-through."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import ff_deepspeed
from ff_deepspeed import preload


def engine(group: int) -> SimpleNamespace:
    return SimpleNamespace(gradient_accumulation_steps=lambda: group)


def test_batches_are_grouped_and_the_rest_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ff_deepspeed")
    assert list(ff_deepspeed.batches(engine(2), range(5))) == [[0, 1], [2, 3]]
    assert "the last 1 micro-batches are dropped" in caplog.text
    assert list(ff_deepspeed.batches(engine(2), range(9), limit=2)) == [[0, 1], [2, 3]]
    assert list(ff_deepspeed.batches(engine(3), [])) == []


def test_batches_are_the_loaders_own() -> None:
    items = [object(), object()]
    assert [group[0] for group in ff_deepspeed.batches(engine(1), items)] == items


def test_iteration_lets_exceptions_through() -> None:
    with pytest.raises(ValueError, match="mine"), ff_deepspeed.iteration():
        raise ValueError("mine")


def test_operators_of_a_live_rank_are_loaded_by_name(caplog: pytest.LogCaptureFixture) -> None:
    preload.load_ops(["cpu_adam"])
    assert "cpu_adam" in preload.loaded()
    published: list[tuple[object, ...]] = []
    preload.publish(SimpleNamespace(call_in_spares=lambda *call: published.append(call)))  # type: ignore[arg-type]
    ((function, names),) = published
    assert function == "ff_deepspeed.preload:load_ops"
    assert "cpu_adam" in names  # type: ignore[operator]
    preload.load_ops(["no_such_operator"])
    assert "'no_such_operator': unknown; known: cpu_adagrad, cpu_adam" in caplog.text


def test_a_spare_imports_deepspeed_and_loads_its_operators_ahead() -> None:
    """DeepSpeed asks other programs about the machine, and the compiler about operators, each with a copy of the
    environment; and an operator of it would read MASTER_ADDR when it is called."""
    live = "import os, sys; os.environ['DS_ACCELERATOR'] = 'cpu'; import deepspeed, ff_deepspeed\n"
    code = """if True:
        import json, sys
        from ff_core.worker import preload, watch
        what, loads = json.loads(sys.argv[1]), [["ff_deepspeed.preload:load_ops", [["deepspeed_shm_comm"]]]]
        result = preload.run(what[0], loads, changed={"DS_ACCELERATOR": watch.digest("cpu")}, settings=what[1])
        assert not result.unfit and result.called == 1 and "deepspeed" in sys.modules, result
    """
    tells = "from ff_core.worker import preload; import json\n"
    tells += "print(json.dumps([preload.library_modules(), preload.settings_of_job()]))"
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}

    def run(*words: str) -> str:
        command = [sys.executable, "-c", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(code, run(live + tells).splitlines()[-1])
