"""Conversions on several cores give what torch gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from ff_core.worker import casts, cores, pieces

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """On four cores, whatever this machine has: sizes of the tensors that were converted in pieces."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    sizes, real = list[int](), casts._converted

    def converted(tensor: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(tensor.numel())
        return real(tensor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(casts, "_converted", converted)
    yield sizes


def numbers(size: int, dtype: torch.dtype) -> torch.Tensor:
    """All kinds of them: subnormal, too large for float16, infinite."""
    made = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-45, 39).repeat(
        size // 84 + 1
    )[:size].to(torch.float64)
    made[5:8] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    return made.to(torch.float32).to(dtype)


@pytest.mark.parametrize("size", [pieces.SMALLEST, pieces.SMALLEST + 1, 9 * pieces.PIECE + 23])
@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_bits_are_torchs(size: int, source: torch.dtype, dtype: torch.dtype, counted: list[int]) -> None:
    tensor = numbers(size, source)
    wanted = tensor.to(dtype)
    with cores.in_parallel():
        made = tensor.to(dtype)
    assert counted == ([size] if source != dtype else [])
    assert made.dtype == dtype and (made is tensor) == (source == dtype)
    assert torch.equal(made.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize(
    "convert",
    [
        lambda tensor: tensor.to(dtype=torch.bfloat16),
        lambda tensor: tensor.to("cpu", torch.bfloat16),
        lambda tensor: tensor.to(device=torch.device("cpu"), dtype=torch.bfloat16, non_blocking=True),
        lambda tensor: tensor.bfloat16(),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.bfloat16().float(),
    ],
)
def test_all_ways_to_ask(convert: Callable[[torch.Tensor], torch.Tensor], counted: list[int]) -> None:
    tensor = torch.randn(600, 700)
    wanted = convert(tensor)
    with cores.in_parallel():
        made = convert(tensor)
    assert counted and torch.equal(made, wanted)
    assert (made.shape, made.stride(), made.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def test_modules(counted: list[int]) -> None:
    def build() -> list[torch.Tensor]:
        torch.manual_seed(5)
        layer = nn.Sequential(nn.Linear(900, 900), nn.Embedding(900, 300)).bfloat16()
        return [parameter.detach() for parameter in layer.to(torch.float32).parameters()]

    wanted = build()
    with cores.in_parallel():
        made = build()
    assert len(counted) == 4
    assert all(map(torch.equal, made, wanted))


def test_what_is_not_plain_is_torchs_own(counted: list[int]) -> None:
    large = torch.randn(1 << 19)
    with cores.in_parallel():
        large.to(torch.float64)
        large.to(torch.int32).to(torch.float32)
        large.reshape(512, 1024).T.to(torch.bfloat16)
        large.to(torch.bfloat16, memory_format=torch.contiguous_format)
        large.to(torch.bfloat16, copy=True)
        large.to(large.double())
        large[:1000].to(torch.bfloat16)
        with torch.inference_mode():
            large.to(torch.bfloat16)
        with pytest.raises(TypeError):
            large.to("bf16", wrong=1)
        assert nn.Parameter(large).to(torch.bfloat16).grad_fn is not None
    assert not counted


def test_torch_has_its_methods_back_afterwards() -> None:
    names = ("to", "float", "bfloat16", "half")
    before = [getattr(torch.Tensor, name) for name in names]
    with cores.in_parallel():
        assert all(getattr(torch.Tensor, name) is not method for name, method in zip(names, before, strict=True))
    assert [getattr(torch.Tensor, name) for name in names] == before


def test_who_has_wrapped_a_method_meanwhile_keeps_the_wrapper(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a script may, or a library that it imports."""
    calls = []
    with cores.in_parallel():
        inner = torch.Tensor.to

        def to(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            calls.append(args)
            return inner(self, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

        torch.Tensor.to = to  # type: ignore[method-assign, assignment]
    try:
        made = torch.ones(1 << 20).to(torch.bfloat16)
    finally:
        del torch.Tensor.to
    assert calls == [(torch.bfloat16,)] and not counted
    assert torch.equal(made, torch.ones(1 << 20).to(torch.bfloat16))
