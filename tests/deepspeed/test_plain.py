"""Outside `fftrain run` everything is a plain pass-through."""

from __future__ import annotations

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
