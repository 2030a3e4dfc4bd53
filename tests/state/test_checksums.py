"""What has changed in tensors, exactly, wherever they lie."""

from __future__ import annotations

import pytest
import torch

from ff_core.state import checksums
from ff_core.state.checksums import Contents


def flat(sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Views that lie one behind the other, as in an optimizer's flat buffer; something else before and behind them."""
    buffer = torch.randn(64 + sum(sizes) + 64).to(dtype)
    return list(buffer[64 : 64 + sum(sizes)].split(sizes))


def rows(contents: Contents) -> int:
    return sum(len(found) for found, _ in contents._sums)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [[256, 1024, 256 * 7, 512], [3, 5, 1, 64], [8192, 8192], [1]])
def test_each_tensor_that_changes_is_named(sizes: list[int], dtype: torch.dtype) -> None:
    tensors = flat(sizes, dtype)
    order = list(reversed(tensors))  # a model lists them in another order than memory does
    for place, tensor in enumerate(order):
        for element in {0, tensor.numel() - 1}:
            contents = Contents(order)
            assert contents.changed().places() == []
            tensor[element] += 1
            assert contents.changed().places() == [place]


def test_several_and_none() -> None:
    tensors = [*flat([512, 512, 512], torch.float32), torch.zeros(0), torch.zeros(4, 4).t(), torch.zeros(2)]
    contents = Contents(tensors)
    assert contents.changed().places() == []
    tensors[1][7], tensors[4][0, 1], tensors[5][1] = 1, 1, 1
    assert contents.changed().places() == [1, 4, 5]
    assert Contents([]).changed().places() == []


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128, torch.float8_e4m3fn],
)
def test_a_sum_is_of_the_content_alone(dtype: torch.dtype) -> None:
    """Wherever it lies, and however many bytes it has; every element counts."""
    for size in (1, 2, 3, 7, 8, 13, 64):
        held = (torch.arange(size) % 2 * 3).to(dtype)
        moved = torch.cat([held[:1], held])[1:]
        assert moved.storage_offset() == 1
        assert checksums.sums([held]).tolist() == checksums.sums([moved]).tolist()
        for element in range(size):
            other = held.clone()
            other[element] = not other[element] if dtype is torch.bool else 1
            assert checksums.sums([held]).tolist() != checksums.sums([other]).tolist()


def test_what_lies_between_does_not_count() -> None:
    buffer = torch.zeros(3 * 512)
    contents = Contents([buffer[:512], buffer[1024:]])
    buffer[600] = 1
    assert contents.changed().places() == []


def test_a_flat_buffer_takes_one_sum() -> None:
    tensors = flat([256, 1024, 512], torch.float32)
    assert len(Contents(tensors)._sums) == 1 and rows(Contents(tensors)) == 1792 // 256


def test_short_rows_only_of_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of short rows would take as much memory as a part of the model."""
    tensors = flat([16, 32, 48], torch.float32)
    assert rows(Contents(tensors)) == 6
    monkeypatch.setattr(checksums, "_FEW_BYTES", 100)
    assert rows(Contents(tensors)) == 3
    contents = Contents(tensors)
    tensors[2][5] = 9
    assert contents.changed().places() == [2]


def test_another_memory_is_a_change() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    contents = Contents([weight])
    weight.data = weight.data.clone()
    assert contents.changed().places() == [0]
