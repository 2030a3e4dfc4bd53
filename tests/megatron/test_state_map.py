"""The state map over real inner optimizers: what is declared, and that no iteration costs more for more fragments."""

from __future__ import annotations

import sys
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.state.razor import make_plan
from ff_core.worker import garbage
from ff_megatron import optimizers, scalars, state_map
from ff_megatron.buckets import GoldenCounts
from ff_megatron.redundancy import Redundancy
from tests.megatron.precision_aware import FusedAdam


class Group:
    def size(self) -> int:
        return 4


@pytest.fixture(autouse=True)
def distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_map, "is_distributed", lambda part: True)


def chunk(*buffers: Any) -> Any:
    parameters: list[Any] = []
    return SimpleNamespace(
        buffers=list(buffers), expert_parallel_buffers=[], bucket_groups=[], expert_parallel_bucket_groups=[],
        dp_cp_group=Group(), expt_dp_group=Group(), parameters=lambda: iter(parameters),
        named_parameters=lambda: iter(parameters),
    )  # fmt: skip


def declare(model: list[Any], optimizer: Any) -> list[TensorSpec]:
    numbers = [optimizers.prepare(part) for part in optimizers.parts(optimizer)]
    return state_map.declare(model, optimizer, numbers, Redundancy(model))


def fragments(count: int) -> Any:
    flat = torch.zeros(count * 16)
    inner = torch.optim.AdamW([torch.nn.Parameter(part) for part in flat.split(16)], lr=0.1)
    return SimpleNamespace(optimizer=inner)


def test_every_optimizer_of_a_chain_is_in_the_plan() -> None:
    chain = SimpleNamespace(chained_optimizers=[fragments(2), SimpleNamespace(is_stub_optimizer=True), fragments(3)])
    assert len(optimizers.parts(chain)) == 2
    specs = declare([chunk()], chain)
    assert make_plan(specs).totals[Held.UNIQUE] == (2 + 3) * (3 * 16 + 1) * 4
    assert {spec.name for spec in specs if spec.name.startswith("step")} == {"step.0", "step.1"}


def test_weights_that_the_optimizer_updates_itself_are_copied_not_derived() -> None:
    """A precision-aware optimizer's fragments are views of DDP's buffer; weights of another buffer are derived."""
    buffers = [SimpleNamespace(param_data=torch.zeros(64, dtype=torch.bfloat16)) for _ in range(2)]
    inner = FusedAdam([{"params": list(buffers[0].param_data.split(16))[:2]}], lr=0.1, master_weights=True)
    part = SimpleNamespace(optimizer=inner)
    specs = declare([chunk(*buffers)], part)
    derived = [spec for spec in specs if spec.held is Held.DERIVED]
    assert [spec.name for spec in derived] == ["weights.0.1"]
    copied = {spec.name.split(".")[0] for spec in specs if spec.held is Held.UNIQUE}
    assert copied == {"master", "exp_avg", "exp_avg_sq", "master_param", "scale"}
    make_plan(specs)


def calls(action: Any) -> int:
    """Python and C functions that `action()` calls."""
    found = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    with garbage.put_off():  # finalizers are calls too
        sys.setprofile(count)
        try:
            action()
        finally:
            sys.setprofile(None)
    return found


def test_what_is_saved_with_an_iteration_does_not_depend_on_the_number_of_fragments() -> None:
    scheduler = SimpleNamespace(num_steps=0)
    counts = []
    for count in (10, 1000):
        part = fragments(count)
        declare([chunk()], part)
        golden = GoldenCounts([chunk()])
        save = partial(scalars.save, part, scheduler)
        save()  # what is done once
        counts.append(calls(save) + calls(golden.save))
    assert counts[0] == counts[1]
