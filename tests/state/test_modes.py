"""Modes, requires_grad and hooks of a model, as of a version."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from ff_core.errors import DifferenceError
from ff_core.state import codec, modes
from ff_core.state.members import Members
from ff_core.state.modes import Modes


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Sequential(nn.Linear(2, 1)))


def of(net: nn.Module) -> Modes:
    return Modes(Members(net))


def test_put_back() -> None:
    one = model()
    one[1].eval()
    one[0].weight.requires_grad_(False)
    saved = codec.decode(codec.encode(of(one).save()))
    other = model().eval()
    of(other).load(saved)
    assert [m.training for m in one.modules()] == [True, True, False, True, True]
    assert [m.training for m in other.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in other.parameters()] == [False, True, True, True]


def test_a_hook_that_is_missing_is_named() -> None:
    one, other = model(), model()
    one[2].register_forward_hook(lambda *_: None)
    with pytest.raises(DifferenceError, match="hooks on 2 are not those of the restored version: register"):
        of(other).load(of(one).save())


def test_a_hook_that_a_framework_removes_by_itself_does_not_count() -> None:
    net = model()
    handle = net.register_forward_pre_hook(lambda *_: None)
    net.register_forward_pre_hook(lambda *_: None)
    modes = Modes(Members(net), [handle])
    saved = codec.decode(codec.encode(modes.save()))
    handle.remove()
    modes.load(saved)
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(DifferenceError, match="hooks on the model itself are not those"):
        modes.load(saved)


def test_a_hook_on_a_parameter_that_is_missing_is_named() -> None:
    one, other = model(), model()
    saved = codec.decode(codec.encode(of(one).save()))
    handle = other[2][0].bias.register_hook(lambda gradient: gradient)
    other[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(DifferenceError, match=r"hooks on 2\.0\.bias, 0\.weight are not those"):
        of(other).load(saved)
    with pytest.raises(DifferenceError, match=r"hooks on 2\.0\.bias, 0\.weight are not those"):
        of(one).load(codec.decode(codec.encode(of(other).save())))
    handle.remove()
    with pytest.raises(DifferenceError, match=r"hooks on 0\.weight are not those"):
        of(other).load(saved)


def test_another_model_is_named() -> None:
    with pytest.raises(DifferenceError, match="a model with 5 modules, the model here has 3"):
        of(nn.Sequential(nn.Linear(1, 1), nn.ReLU())).load(of(model()).save())
    smaller = copy.deepcopy(model())
    smaller[0] = nn.Linear(2, 2, bias=False)
    with pytest.raises(DifferenceError, match="a model with 4 parameters, the model here has 3"):
        of(smaller).load(of(model()).save())


def test_several_chunks() -> None:
    chunks = model(), model().eval()
    saved = of(nn.ModuleList(chunks)).save()
    others = model().eval(), model()
    of(nn.ModuleList(others)).load(saved)
    assert [m.training for chunk in others for m in chunk.modules()] == [True] * 5 + [False] * 5


@pytest.mark.parametrize(
    ("place", "other"), [(1, nn.Identity()), (1, nn.Dropout(0.5, inplace=True)), (0, nn.LazyLinear(2))]
)
def test_a_module_that_the_script_has_replaced_is_named_at_once_and_in_a_replacement(
    place: int, other: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    one = model()
    modes = of(one)
    modes.save()
    assert not caplog.records
    one[place] = other
    modes._members.look()
    saved = codec.decode(codec.encode(modes.save()))
    assert f"the script has replaced {place} of its model while it trains" in caplog.text
    with pytest.raises(DifferenceError, match=f"the script has replaced {place} of its model.*choose by an attribute"):
        of(model()).load(saved)


def test_a_rate_that_changes_is_no_other_module() -> None:
    one = model()
    modes = of(one)
    modes.save()
    one[1].p = 0.1
    of(model()).load(modes.save())


def test_checksums_are_made_when_the_model_has_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    one, made = model(), list[nn.Module]()
    modes_ = of(one)
    before = modes._what_it_is
    monkeypatch.setattr(modes, "_what_it_is", lambda module: made.append(module) or before(module))
    saved = modes_.save()
    modes_.load(saved)
    modes_.save()
    assert len(made) == len(list(one.modules()))
    one[1] = nn.Identity()
    modes_._members.look()
    modes_.save()
    assert len(made) == 2 * len(list(one.modules()))
