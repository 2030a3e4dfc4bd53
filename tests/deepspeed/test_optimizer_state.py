"""Moments made ahead, step counts, and DeepSpeedCPUAdam's hidden state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ff_core.errors import UnsupportedError
from ff_core.state import codec
from ff_core.state import optimizer_tensors as held
from ff_core.state.optimizer_tensors import trainable
from ff_deepspeed import cpu_adam, moments
from tests.deepspeed.small_model import Numbered
from tests.state.odd_optimizers import Decaying, Grouped, Momentum


def parameters(name: str = "") -> list[torch.nn.Parameter]:
    """Two vectors; for those that step matrices, a matrix and a vector or two matrices."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, list[tuple[int, ...]]] = {"Muon": [(8, 12), (12, 8)], "Adafactor": [(300, 270), (9,)]}
    given = [torch.randn(shape, generator=generator) for shape in shapes.get(name, [(40,), (9,)])]
    return [torch.nn.Parameter(value) for value in given]


def gradients(step: int, given: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in given:
        p.grad = torch.randn(p.shape, generator=generator)


def bits(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    return [t.tolist() for t in live(optimizer)]


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}])
def test_moments_made_ahead_are_what_the_first_step_makes(options: dict[str, Any]) -> None:
    ahead, lazy = (torch.optim.AdamW(parameters(), lr=0.1, **options) for _ in range(2))
    moments.of(ahead).create()
    state = ahead.state[trainable(ahead)[0]]
    assert float(state["step"]) == 0
    gradients(0, trainable(lazy))
    lazy.step()
    moments.of(lazy).create()
    reference = lazy.state[trainable(lazy)[0]]
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in reference.items()}
    gradients(0, trainable(ahead))
    ahead.step()
    assert bits(ahead) == bits(lazy)
    assert [row["step"] for row in held.rows(moments.of(ahead).save()["numbers"])] == [1.0, 1.0]


def test_existing_state_is_left_alone() -> None:
    optimizer = torch.optim.Adam(parameters())
    gradients(0, trainable(optimizer))
    optimizer.step()
    moments.of(optimizer).create()
    before = copy.deepcopy(bits(optimizer))
    moments.of(optimizer).create()
    assert bits(optimizer) == before
    saved = codec.decode(codec.encode(moments.of(optimizer).save()))
    saved["numbers"]["tensors"][0]["values"] = torch.tensor([7.0, 8.0])
    moments.of(optimizer).load(saved)
    assert held.rows(moments.of(optimizer).save()["numbers"]) == [{"step": 7.0}, {"step": 8.0}]


SEEN: dict[str, Callable[[list[torch.nn.Parameter]], Any]] = {
    "AdamW": lambda p: torch.optim.AdamW(p),
    "Adam amsgrad foreach": lambda p: torch.optim.Adam(p, amsgrad=True, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "AdamW with a tensor as learning rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "Muon": lambda p: torch.optim.Muon(p),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "SGD momentum fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


def make_deepspeed(kind: str, given: list[torch.nn.Parameter], **options: Any) -> Any:
    from deepspeed.ops import adagrad, adam, lion

    for module in (adam, lion, adagrad):
        if hasattr(module, kind):
            return getattr(module, kind)(given, lr=0.1, **options)
    raise AssertionError(kind)


def begun(optimizer: Any) -> Any:
    """Followed from before its first step, its state made."""
    moments.of(optimizer).create()
    return optimizer


def run(optimizer: Any, steps: range, betas: Any = None) -> None:
    for step in steps:
        if betas is not None:
            optimizer.param_groups[0]["betas"] = betas(step)
        gradients(step, trainable(optimizer))
        optimizer.step()


def change_once(step: int) -> tuple[float, float]:
    return (0.9 if step < 6 else 0.8, 0.999)


def change_always(step: int) -> tuple[float, float]:
    return (0.9, 0.9 + step / 1000)


def saved_of(optimizer: Any) -> tuple[Any, ...]:
    """What a version has: bytes of the numbers, and clones of the tensors."""
    numbers = codec.encode((moments.of(optimizer).save(), held.groups(optimizer)))
    return numbers, [t.clone() for t in live(optimizer)]


def live(optimizer: Any) -> list[torch.Tensor]:
    return [t for p in trainable(optimizer) for t in (p.data, *moments.of(optimizer).tensors(p).values())]


def put_back(optimizer: Any, saved: tuple[Any, ...]) -> None:
    numbers, groups = codec.decode(saved[0])
    held.set_groups(optimizer, groups)
    moments.of(optimizer).load(numbers)
    for tensor, value in zip(live(optimizer), saved[1], strict=True):
        tensor.copy_(value)


GOING_BACK: dict[str, Callable[[list[torch.nn.Parameter]], Any]] = {
    "DeepSpeedCPUAdam": lambda p: make_deepspeed("DeepSpeedCPUAdam", p),
    "DeepSpeedCPULion": lambda p: make_deepspeed("DeepSpeedCPULion", p),
    "DeepSpeedCPUAdagrad": lambda p: make_deepspeed("DeepSpeedCPUAdagrad", p),
    "FusedAdam": lambda p: make_deepspeed("FusedAdam", p),
    "FusedAdam L2": lambda p: make_deepspeed("FusedAdam", p, adam_w_mode=False, weight_decay=0.1),
    "a number in an attribute": lambda p: Numbered(p, lr=0.1),
    "a count in the group": lambda p: Grouped(p),
    "a tensor in the group": lambda p: Decaying(p),
}


#: DeepSpeed compiles each when it is first used, for a minute. CPUAdam stands for what is hidden in C++.
COMPILED = {"DeepSpeedCPULion", "DeepSpeedCPUAdagrad"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in COMPILED else []) for n in (*GOING_BACK, *SEEN)]
)
@pytest.mark.parametrize("fresh", [False, True], ids=["survivor", "newcomer"])
@pytest.mark.parametrize("version", [0, 1, 20])
def test_going_back_is_exact(name: str, fresh: bool, version: int) -> None:
    make = {**GOING_BACK, **SEEN}[name]
    optimizer = begun(make(parameters(name)))
    run(optimizer, range(1, version + 1))
    saved = saved_of(optimizer)
    run(optimizer, range(version + 1, version + 11))
    expected = bits(optimizer)

    other = begun(make(parameters(name))) if fresh else optimizer
    put_back(other, saved)
    run(other, range(version + 1, version + 11))
    assert bits(other) == expected


@pytest.mark.parametrize("kind", ["DeepSpeedCPUAdam", "FusedAdam"])
@pytest.mark.parametrize(("count", "betas"), [(2, None), (1, None), (1, change_once), (1, change_always)])
@pytest.mark.parametrize("fresh", [False, True], ids=["survivor", "newcomer"])
def test_going_back_is_exact_with_adam_in_cpp(kind: str, count: int, betas: Any, fresh: bool) -> None:
    optimizer = begun(make_deepspeed(kind, parameters()[:count]))
    run(optimizer, range(1, 21), betas)
    saved = saved_of(optimizer)
    run(optimizer, range(21, 31), betas)
    expected = bits(optimizer)

    other = begun(make_deepspeed(kind, parameters()[:count])) if fresh else optimizer
    put_back(other, saved)
    run(other, range(21, 31), betas)
    assert bits(other) == expected


@pytest.mark.parametrize(("forgets", "jump"), [(True, 2), (False, 0)])
def test_a_second_tensor_of_a_step_is_a_jump_in_older_versions(
    forgets: bool, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_adam, "forgets_in_a_step", lambda: forgets)
    optimizer = begun(make_deepspeed("FusedAdam", parameters()[:2]))
    history = optimizer.multi_tensor_adam.history
    history.load({"betas": map(cpu_adam._float32, optimizer.param_groups[0]["betas"]), "jump": 0, "step": 0})
    run(optimizer, range(1, 3))
    assert history.jump == jump


@pytest.mark.parametrize("kind", ["DeepSpeedCPUAdam", "FusedAdam"])
def test_what_was_a_jump_is_a_jump_again(kind: str) -> None:
    """Even where the C++ object would multiply, because it stands right before that step."""
    optimizer = begun(make_deepspeed(kind, parameters()[:1]))
    run(optimizer, range(1, 21))
    jumped = {**cpu_adam.save(optimizer), "jump": 21, "step": 25}
    saved = [t.clone() for t in live(optimizer)]
    ends = []
    for before in (cpu_adam.save(optimizer), {"betas": [0.5, 0.5], "jump": 1, "step": 1}):
        cpu_adam.restore(optimizer, before)
        cpu_adam.restore(optimizer, jumped)
        for tensor, value in zip(live(optimizer), saved, strict=True):
            tensor.copy_(value)
        for state in optimizer.state.values():
            state["step"] = 25
        run(optimizer, range(26, 31))
        ends.append(bits(optimizer))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", ["DeepSpeedCPUAdam", "FusedAdam"])
def test_without_its_hidden_state_going_back_is_not_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can tell."""
    optimizer = begun(make_deepspeed(kind, parameters()[:1]))
    run(optimizer, range(1, 21))
    saved = saved_of(optimizer)
    run(optimizer, range(21, 31))
    expected = bits(optimizer)
    monkeypatch.setattr(moments._Rules, "restore", staticmethod(lambda *_: None))
    put_back(optimizer, saved)
    run(optimizer, range(21, 31))
    assert bits(optimizer) != expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o, p: o.state[p].update(mean=torch.zeros_like(p)), "has made a new tensor for its state 'mean'"),
        (lambda o, p: o.state[p].update(more=torch.zeros_like(p)), "has made a new tensor for its state 'more'"),
        (lambda o, p: o.state["all"].update(count=1), "has made an entry 'all' in its state"),
        (lambda o, p: o.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(3))), "is trained that had"),
    ],
)
def test_what_appears_during_training_ends_it(change: Any, reason: str) -> None:
    optimizer = begun(Momentum(parameters()))
    moments.of(optimizer).save()
    change(optimizer, trainable(optimizer)[0])
    with pytest.raises(UnsupportedError, match=reason):
        moments.of(optimizer).save()


def test_what_a_checkpoint_or_the_script_changed_is_examined_again() -> None:
    """SGD gets its momentum after the engine was made."""
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    assert not moments.examine(optimizer).late
    moments.of(optimizer)
    optimizer.param_groups[0]["momentum"] = 0.9
    begun(optimizer)
    assert all("momentum_buffer" in moments.of(optimizer).tensors(p) for p in trainable(optimizer))


@pytest.mark.parametrize("name", SEEN)
def test_optimizers_of_torch_pass_the_trial_and_are_not_changed_by_it(name: str) -> None:
    optimizer = SEEN[name](parameters(name))
    values = [p.tolist() for p in trainable(optimizer)]
    random = torch.get_rng_state()
    before = copy.deepcopy(optimizer.state_dict())
    found = moments.examine(optimizer)
    assert found.obstacles == ()
    assert list(found.late) == (["momentum_buffer"] if name.startswith("SGD momentum") else [])
    assert [p.tolist() for p in trainable(optimizer)] == values
    assert str(optimizer.state_dict()) == str(before)
    assert torch.equal(torch.get_rng_state(), random)
