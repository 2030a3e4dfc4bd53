"""An optimizer that no engine has, stepped by the script: also what it keeps in C++ comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from ff_core.state import codec, optimizer_state
from ff_core.state.optimizer_state import OptimizerState
from ff_deepspeed import cpu_adam


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_state, "_hidden", cpu_adam)


def made() -> tuple[torch.nn.Parameter, Any, OptimizerState]:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
    optimizer = DeepSpeedCPUAdam([p], lr=1e-2)
    cpu_adam.follow(optimizer)
    return p, optimizer, OptimizerState(optimizer, "a DeepSpeedCPUAdam")


def step(p: torch.nn.Parameter, optimizer: Any, number: int) -> None:
    p.grad = torch.sin(number * p.detach())
    optimizer.step()


@pytest.mark.parametrize("fresh", [True, False])
def test_deepspeed_cpu_adam_goes_on_to_the_bit(fresh: bool) -> None:
    p, optimizer, state = made()
    saved = b""
    for number in range(1, 41):
        if number == 31:
            saved = codec.encode(state.state_dict())
        step(p, optimizer, number)
    wanted = p.detach().clone()
    if fresh:
        p, optimizer, state = made()
    state.load_state_dict(codec.decode(saved))
    for number in range(31, 41):
        step(p, optimizer, number)
    assert torch.equal(p.detach(), wanted)
