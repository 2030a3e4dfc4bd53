"""The inner optimizers: state made ahead changes nothing, step counts are one tensor, unknown state is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import UnsupportedError
from ff_core.state import codec
from ff_megatron import moments, optimizers, scalars
from tests.megatron.precision_aware import FusedAdam
from tests.state import odd_optimizers as odd


def make(kind: Any, **extra: Any) -> tuple[list[torch.nn.Parameter], Any]:
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (5, 7, 1)]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    return parameters, kind(groups, lr=0.1, **extra)


def train(parameters: list[torch.nn.Parameter], inner: Any, steps: int) -> list[float]:
    for step in range(steps):
        for p in parameters:
            p.grad = torch.sin(p.detach() + step)
        inner.step()
    return [value for p in parameters for value in p.detach().tolist()]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("extra", [{}, {"foreach": True}, {"foreach": False}])
def test_torch_steps_are_views_of_one_tensor(kind: Any, extra: dict[str, Any]) -> None:
    wanted = train(*make(kind, **extra), 4)
    parameters, inner = make(kind, **extra)
    steps = optimizers.prepare(SimpleNamespace(optimizer=inner))["step"]
    assert steps.tolist() == [0.0, 0.0, 0.0]
    assert train(parameters, inner, 4) == wanted
    assert steps.tolist() == [4.0, 4.0, 4.0]
    assert all(inner.state[p]["step"].data_ptr() == steps[i].data_ptr() for i, p in enumerate(parameters))


def test_state_that_exists_keeps_its_values() -> None:
    wanted = train(*make(torch.optim.AdamW), 5)
    parameters, inner = make(torch.optim.AdamW)
    train(parameters, inner, 2)
    steps = optimizers.prepare(SimpleNamespace(optimizer=inner))["step"]
    assert steps.tolist() == [2.0, 2.0, 2.0]
    for step in range(2, 5):
        for p in parameters:
            p.grad = torch.sin(p.detach() + step)
        inner.step()
    assert [value for p in parameters for value in p.detach().tolist()] == wanted


def test_writing_the_one_tensor_sets_every_step() -> None:
    parameters, inner = make(torch.optim.AdamW)
    steps = optimizers.prepare(SimpleNamespace(optimizer=inner))["step"]
    train(parameters, inner, 3)
    steps.fill_(1.0)  # what a restore does
    assert [float(inner.state[p]["step"]) for p in parameters] == [1.0, 1.0, 1.0]


def fused(module: str) -> Any:
    """The recorded layout of apex's and TransformerEngine's FusedAdam: moments per parameter, the step in the group."""

    def step(self: Any) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("exp_avg", torch.zeros_like(p))
                state.setdefault("exp_avg_sq", torch.zeros_like(p))
                state["exp_avg"].lerp_(p.grad, 0.1)
                p.data.sub_(state["exp_avg"], alpha=group["lr"])

    def init(self: Any, groups: Any, lr: float) -> None:
        torch.optim.Optimizer.__init__(self, groups, {"lr": lr, "betas": (0.9, 0.95), "bias_correction": True})

    return type("FusedAdam", (torch.optim.Optimizer,), {"__module__": module, "__init__": init, "step": step})


@pytest.mark.parametrize("module", ["apex.optimizers.fused_adam", "transformer_engine.pytorch.optimizers.fused_adam"])
def test_fused_layout_counts_in_the_group(module: str) -> None:
    kind = fused(module)
    wanted = train(*make(kind), 4)
    parameters, inner = make(kind)
    assert optimizers.is_fused(inner) and not optimizers.is_torch(inner)
    assert optimizers.prepare(SimpleNamespace(optimizer=inner)) == {}
    before = scalars._values(inner.param_groups[0])
    assert "step" not in before
    assert train(parameters, inner, 4) == wanted
    after = scalars._values(inner.param_groups[0])
    assert after["step"] == 4 and after["betas"] == (0.9, 0.95) and "params" not in after


def test_an_optimizer_of_another_name_is_neither() -> None:
    _, inner = make(torch.optim.SGD)
    assert not optimizers.is_torch(inner) and not optimizers.is_fused(inner)


@pytest.mark.parametrize("before", [0, 2])
def test_momentum_is_in_the_place_that_is_copied(before: int) -> None:
    """SGD makes it in its first step. Put back, in this and in a fresh process, it gives the same bits; so does the
    version before the first step."""
    wanted = train(*make(torch.optim.SGD, momentum=0.9), before + 2)
    parameters, inner = make(torch.optim.SGD, momentum=0.9)
    part = SimpleNamespace(optimizer=inner)
    assert optimizers.prepare(part) == {}
    train(parameters, inner, before)
    kept = [optimizers.tensors(inner, p)["momentum_buffer"] for p in parameters]
    saved = codec.decode(codec.encode({"numbers": optimizers.save(part)}))["numbers"]
    copies = [t.detach().clone() for t in (*parameters, *kept)]
    others, fresh = make(torch.optim.SGD, momentum=0.9)
    optimizers.prepare(SimpleNamespace(optimizer=fresh))
    train(parameters, inner, 1)
    for these, it in ((parameters, inner), (others, fresh)):
        tensors = (*these, *(optimizers.tensors(it, p)["momentum_buffer"] for p in these))
        with torch.no_grad():
            for tensor, value in zip(tensors, copies, strict=True):
                tensor.copy_(value)
        optimizers.load(SimpleNamespace(optimizer=it), saved)
        for step in range(before, before + 2):
            for p in these:
                p.grad = torch.sin(p.detach() + step)
            it.step()
        assert [value for p in these for value in p.detach().tolist()] == wanted
        assert all(it.state[p]["momentum_buffer"] is t for p, t in zip(these, tensors[3:], strict=True))


def test_state_that_a_trial_does_not_find_is_refused() -> None:
    (words,) = moments.words(odd.Counting(odd.parameters(), late=False))
    assert "another attribute" in words and words.endswith("Use --optimizer adam")
    assert not list(moments.words(make(torch.optim.SGD, momentum=0.9)[1]))


def test_unknown_state_is_refused_by_name() -> None:
    parameters, inner = make(torch.optim.AdamW, amsgrad=True)
    with pytest.raises(UnsupportedError, match="keeps 'max_exp_avg_sq'"):
        optimizers.prepare(SimpleNamespace(optimizer=inner))
    parameters, inner = make(fused("apex.optimizers.fused_adam"))
    inner.state[parameters[0]]["exp_avg"] = torch.zeros(2)
    message = r"keeps 'exp_avg' \(\(2,\), torch.float32, Tensor\) for a parameter of shape \(5,\)"
    with pytest.raises(UnsupportedError, match=message):
        optimizers.prepare(SimpleNamespace(optimizer=inner))


def precision_aware(masters: str, weights: torch.dtype = torch.bfloat16) -> tuple[list[torch.Tensor], Any]:
    parameters = [torch.linspace(-1, 1, n).to(weights) for n in (5, 7, 1)]
    remainders = masters == "remainders"
    inner = FusedAdam(
        [{"params": parameters}], lr=0.1, weight_decay=0.01, master_weights=True, use_decoupled_grad=True,
        exp_avg_dtype=torch.float16, exp_avg_sq_dtype=torch.bfloat16, store_param_remainders=remainders,
        master_weight_dtype=torch.float32 if remainders else getattr(torch, masters),
    )  # fmt: skip
    return parameters, inner


def go(parameters: list[torch.Tensor], inner: Any, steps: int) -> None:
    for step in range(steps):
        for p in parameters:
            p.decoupled_grad = torch.sin(p.float() + step)  # type: ignore[attr-defined]
        inner.step()


@pytest.mark.parametrize("masters", ["float32", "float16", "remainders"])
def test_precision_aware_state_is_copied_as_it_lies_there(masters: str) -> None:
    """What the specs name, put back byte by byte, is enough to go on with the same bits; scales are views of one."""
    parameters, inner = precision_aware(masters)
    part = SimpleNamespace(optimizer=inner)
    assert optimizers.is_precision_aware(inner)
    scales = optimizers.prepare(part)["scale"]
    assert len(scales) == 3 * (3 if masters == "float16" else 2)
    go(parameters, inner, 2)
    assert (scales != 1).any()  # written in place by the step
    names = tuple(optimizers.tensors(inner, parameters[0]))
    assert names == ("exp_avg", "exp_avg_sq", "master_param")
    copied = [scales, *(t for p in parameters for t in (p, *(inner.state[p][name] for name in names)))]
    before, group = [t.clone() for t in copied], dict(inner.param_groups[0])
    go(parameters, inner, 3)
    wanted = [t.clone() for t in copied]
    assert not all(torch.equal(a, b) for a, b in zip(before, wanted, strict=True))
    for tensor, value in zip(copied, before, strict=True):
        tensor.copy_(value)
    inner.param_groups[0]["step"] = group["step"]
    go(parameters, inner, 3)
    assert all(torch.equal(a, b) for a, b in zip(copied, wanted, strict=True))


def test_precision_aware_state_made_ahead_changes_nothing() -> None:
    parameters, inner = precision_aware("remainders")
    go(parameters, inner, 4)
    others, prepared = precision_aware("remainders")
    optimizers.prepare(SimpleNamespace(optimizer=prepared))
    go(others, prepared, 4)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


def test_fused_adam_in_full_precision_is_not_precision_aware() -> None:
    _, inner = make(FusedAdam)
    assert optimizers.is_fused(inner) and not optimizers.is_precision_aware(inner)
    assert optimizers.prepare(SimpleNamespace(optimizer=inner)) == {}


def test_fp8_moments_are_refused_by_name() -> None:
    class Float8Tensor(torch.Tensor):
        pass

    parameters, inner = precision_aware("remainders")
    optimizers.prepare(SimpleNamespace(optimizer=inner))
    inner.state[parameters[0]]["exp_avg"] = torch.zeros(5).as_subclass(Float8Tensor)
    with pytest.raises(UnsupportedError, match=r"keeps 'exp_avg' \(.*Float8Tensor\).* plain tensors"):
        optimizers.prepare(SimpleNamespace(optimizer=inner))
