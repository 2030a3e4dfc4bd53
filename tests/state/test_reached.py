"""What scripts have behind callables, in hooks, by thread, and switched for the process. See `tests.state.kinds`."""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ff_core.state import covered, process_wide, switched
from tests.state.kinds import Look, Numbers, Scripts, repeated, replaced, right

SCRIPTS = script = Scripts()
CURRENT = contextvars.ContextVar("CURRENT", default=0)
THREADS = threading.local()


class Counter:
    def __init__(self) -> None:
        self.calls, self.seen = 0, [0]

    def up(self, value: int) -> int:
        self.calls += value
        self.seen.append(value)
        return self.calls

    def __call__(self, *_: Any) -> None:
        self.up(1)


def add(totals: dict[str, int], value: int, *, to: list[int]) -> int:
    totals["sum"] = totals.get("sum", 0) + value
    to.append(value)
    return totals["sum"]


@script
def what_callables_have(look: Look, numbers: Numbers) -> Any:
    method, bound, nested = Counter().up, functools.partial(add, {}, to=[]), functools.partial(Counter().up)
    listed = {"on_step": [Counter().up]}
    look(0)
    for n in numbers:
        method(n)
        bound(n)
        nested(2 * n)
        listed["on_step"][0](n)
        look(n)
    return method(0), bound(0), bound.keywords, nested(0), listed["on_step"][0](0)


@script
def what_hooks_have(look: Look, numbers: Numbers) -> Any:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model.register_forward_hook(Counter())
    model[1].register_forward_pre_hook(functools.partial(_pre, Counter()))
    model[0].weight.register_post_accumulate_grad_hook(Counter().__call__)
    look(0)
    for n in numbers:
        for _ in range(n):
            model(torch.ones(1)).sum().backward()
        look(n)
    whole, before = (next(iter(hooks.values())) for hooks in (model._forward_hooks, model[1]._forward_pre_hooks))
    of_weight = next(iter(model[0].weight._post_accumulate_grad_hooks.values()))
    return whole.calls, before.args[0].calls, of_weight.__self__.calls


def _pre(counter: Counter, *_: Any) -> None:
    counter.up(1)


@script
def what_hooks_on_the_trained_model_have(look: Look, numbers: Numbers) -> Any:
    model = nn.Linear(1, 1)
    model.register_forward_hook(Counter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switched, "left_out", lambda: [model])
        look(0)
    for n in numbers:
        for _ in range(n):
            model(torch.ones(1))
        look(n)
    return next(iter(model._forward_hooks.values())).calls


@script
def none_where_the_trained_model_has_no_bias(look: Look, numbers: Numbers) -> Any:
    """None is not "what the model has": a variable may be None, too, until it has a first value."""
    model, mean = nn.Linear(1, 1, bias=False), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switched, "left_out", lambda: [model])
        look(0)
    for n in numbers:
        mean = float(n) if mean is None else (mean + n) / 2
        look(n)
    return mean


@script
def what_threads_and_contexts_have(look: Look, numbers: Numbers) -> Any:
    THREADS.total, THREADS.seen = 0, []
    CURRENT.set(0)
    look(0)
    for n in numbers:
        THREADS.total += n
        THREADS.seen.append(n)
        THREADS.late = n
        CURRENT.set(CURRENT.get() + n)
        look(n)
    return THREADS.total, THREADS.seen, THREADS.late, CURRENT.get()


@script
def the_environment(look: Look, numbers: Numbers) -> Any:
    os.environ.update(FACTOR="1", GONE="1")
    os.environ.pop("LATE", None)
    look(0)
    for n in numbers:
        os.environ["FACTOR"] = str(int(os.environ["FACTOR"]) + n)
        if n > 1:
            os.environ["LATE"] = str(int(os.environ.get("LATE", "0")) + n)
        look(n)
    return os.environ["FACTOR"], os.environ.get("LATE")


@script
def how_torch_computes(look: Look, numbers: Numbers) -> Any:
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    look(0)
    for n in numbers:
        if n == 2:
            torch.set_default_dtype(torch.float64)
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.set_num_threads(torch.get_num_threads() + 1)
        if n == 5:
            torch.use_deterministic_algorithms(True)
        look(n)
    return {**process_wide.OfTorch().values({}), "threads": torch.get_num_threads() > 1}


@script
def views_of_memory_and_children_of_generators(look: Look, numbers: Numbers) -> Any:
    counts, seeds = memoryview(bytearray(3)), np.random.default_rng(3)
    look(0)
    for n in numbers:
        counts[n % 3] += n
        seeds.spawn(n)
        look(n)
    return bytes(counts), seeds.spawn(1)[0].random(), seeds.random()


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(covered, "_trainers", [])
    torch_s, environment = process_wide.OfTorch(), dict(os.environ)
    saved = torch_s.values({})
    yield
    torch_s.write({}, saved)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_replacement_goes_on_with_them(name: str) -> None:
    threads = torch.get_num_threads()
    assert replaced(SCRIPTS[name]) == ([], right(SCRIPTS[name]))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_survivor_repeats_an_iteration_with_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(SCRIPTS[name], monkeypatch) == ([], right(SCRIPTS[name]))


def a_sparse_tensor(look: Look, numbers: Numbers) -> Any:
    rows = torch.eye(2).to_sparse()
    look(0)
    for n in numbers:
        rows = rows * n
        look(n)
    return rows.to_dense()


def test_what_cannot_be_put_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "a_sparse_tensor().rows (Tensor"
    assert [said[: len(wanted)] for said in replaced(a_sparse_tensor)[0]] == [wanted]
    assert [said[: len(wanted)] for said in repeated(a_sparse_tensor, monkeypatch)[0]] == [wanted]


OTHERS = {
    torch.float32: torch.float64, torch.float64: torch.float32, "highest": "high", "none": "tf32", "tf32": "ieee",
    "ieee": "tf32", 1: 2, 0: 1, 2: 1,
}  # fmt: skip


@pytest.mark.parametrize("name", process_wide.OfTorch().values({}))
def test_each_switch_of_torch_can_be_put_back(name: str) -> None:
    place = process_wide.OfTorch()
    before = place.values({})
    value = before[name]
    other = (not value) if isinstance(value, bool) else OTHERS.get(value, 1)
    if name.startswith("fp32_precision_mkldnn"):
        other = "ieee" if value != "ieee" else "none"
    try:
        place.write({}, {name: other})
    except RuntimeError as error:
        pytest.skip(f"this machine's processor has no such switch: {error}")
    assert place.values({})[name] == other != value
    place.write({}, before)
    assert place.values({}) == before


def test_the_environment_is_looked_at_again_only_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = process_wide.OfEnvironment()
    first = place.values({})
    assert place.values({}) is first
    monkeypatch.setenv("SOMETHING_NEW", "1")
    monkeypatch.setenv("FF_OWN", "1")
    assert place.values({}) == {**first, "SOMETHING_NEW": "1"}
    place.remove({}, "SOMETHING_NEW")
    assert "SOMETHING_NEW" not in os.environ and place.values({}) == first
