"""Random initialisation on several cores gives what torch gives, and leaves generators where torch leaves them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from ff_core.copy.binding import generator_skip
from ff_core.worker import cores, fills, pieces

_LEAST = pieces.SMALLEST
SIZES = (_LEAST, _LEAST + 1, _LEAST + 17, _LEAST + pieces.PIECE - 1, 3 * _LEAST + 5, 9 * pieces.PIECE + 23)
FILLS = {"normal_": (0.1, 0.02), "uniform_": (-1.0, 1.0)}


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the tensors that were filled in pieces."""
    sizes, real = list[int](), fills._fill

    def fill(pool: object, original: object, tensor: torch.Tensor, *rest: object) -> None:
        sizes.append(tensor.numel())
        real(pool, original, tensor, *rest)  # type: ignore[arg-type]

    assert fills._as_known()
    monkeypatch.setattr(fills, "_fill", fill)
    yield sizes


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("used", [0, 1, 623, 624])
def test_the_bits_are_torchs(name: str, size: int, used: int, counted: list[int]) -> None:
    def fill() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(11)
        torch.rand(used)
        torch.randn(3)  # leaves a normal number for later
        made = getattr(torch.empty(size), name)(*FILLS[name])
        return made, torch.get_rng_state(), torch.randn(3)

    wanted = fill()
    with cores.in_parallel():
        made = fill()
    assert counted == [size]
    for ours, theirs in zip(made, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_layers_and_generators_of_ones_own(counted: list[int]) -> None:
    def build() -> list[torch.Tensor]:
        torch.manual_seed(3)
        own = torch.Generator().manual_seed(4)
        layers = [nn.Linear(1100, 1100), nn.Embedding(600, 700)]
        nn.init.trunc_normal_(layers[0].weight, std=0.02, generator=own)
        made = [parameter.detach() for layer in layers for parameter in layer.parameters()]
        return [*made, own.get_state(), torch.get_rng_state()]

    wanted = build()
    with cores.in_parallel():
        made = build()
    assert len(counted) == 3
    assert all(map(torch.equal, made, wanted))


def test_what_is_not_known_is_torchs_own(counted: list[int]) -> None:
    large = torch.empty(1 << 20)
    with cores.in_parallel():
        large.to(torch.bfloat16).normal_()
        large.reshape(1024, 1024).T.normal_()
        torch.empty(1000).normal_()
        with torch.device("meta"):
            torch.empty(1 << 20).uniform_()
        with pytest.raises(RuntimeError, match="leaf"):
            nn.Parameter(large).normal_()
        with pytest.raises(RuntimeError, match="std"):
            large.normal_(0.0, -1.0)
        with torch.inference_mode():  # of this thread alone
            torch.empty(1 << 20).normal_()
    assert counted == [1 << 20]  # the one with a wrong std, which torch refuses


def test_torch_has_its_methods_back_afterwards() -> None:
    before = torch.Tensor.normal_, torch.Tensor.uniform_
    with cores.in_parallel():
        assert torch.Tensor.normal_ is not before[0]
    assert (torch.Tensor.normal_, torch.Tensor.uniform_) == before


def twice(address: int, size: int, count: int) -> None:
    """As if torch took two numbers for an element."""
    generator_skip(address, size, 2 * count)


def shorter(address: int, size: int, count: int) -> None:
    """As if torch's state were another one."""
    generator_skip(address, 100, count)


@pytest.mark.parametrize("skip", [twice, shorter])
def test_another_torch_than_is_known_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, skip: Callable[[int, int, int], None]
) -> None:
    monkeypatch.setattr(fills, "generator_skip", skip)
    fills._as_known.cache_clear()
    try:
        assert not fills._as_known()
        before = torch.Tensor.normal_
        with cores.in_parallel():
            assert torch.Tensor.normal_ is before
    finally:
        fills._as_known.cache_clear()
