"""Frozen state on disk: the same bits come back, whatever the script has made meanwhile; damage is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.errors import CorruptSlotError, FailoverError
from ff_core.state import constants


def specs(seed: int) -> list[TensorSpec]:
    torch.manual_seed(seed)
    return [
        TensorSpec("trained", torch.randn(5), Held.UNIQUE),
        TensorSpec("frozen.a", torch.randn(7, 3).to(torch.bfloat16), Held.CONSTANT),
        TensorSpec("frozen.b", torch.randn(6, 4).t(), Held.CONSTANT),
        TensorSpec("frozen.none", torch.empty(0), Held.CONSTANT),
        TensorSpec("buffer.mask", torch.randint(0, 2, (9,)).bool(), Held.CONSTANT),
        TensorSpec("buffer.count", torch.tensor(seed), Held.CONSTANT),
    ]


def test_the_same_bits_come_back(tmp_path: Path) -> None:
    first, second = specs(1), specs(2)
    part = constants.write(str(tmp_path), 3, first)
    path = tmp_path / "constants" / part.file
    assert path.stat().st_size == part.size and part.file.startswith("rank00003-")
    trained = second[0].tensor.clone()
    places = [spec.tensor.data_ptr() for spec in second]
    constants.load(str(path), second)
    assert torch.equal(second[0].tensor, trained), "what is trained is in the slots"
    for spec, wanted in zip(second[1:], first[1:], strict=True):
        assert torch.equal(spec.tensor, wanted.tensor) and spec.tensor.dtype == wanted.tensor.dtype, spec.name
    assert places == [spec.tensor.data_ptr() for spec in second]


def test_nan_and_minus_zero_are_bits(tmp_path: Path) -> None:
    value = torch.tensor([float("nan"), -0.0, 1.0])
    part = constants.write(str(tmp_path), 0, [TensorSpec("a", value, Held.CONSTANT)])
    other = torch.zeros(3)
    constants.load(str(tmp_path / "constants" / part.file), [TensorSpec("a", other, Held.CONSTANT)])
    assert torch.equal(other.view(torch.int32), value.view(torch.int32))


def test_damage_is_refused(tmp_path: Path) -> None:
    part = constants.write(str(tmp_path), 3, specs(1))
    path = tmp_path / "constants" / part.file
    good = path.read_bytes()
    start = good.index(b"\n") + 1
    for bad in (good[:-1], good[: start + 5], good[:10], good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :]):
        path.write_bytes(bad)
        with pytest.raises(CorruptSlotError, match="damaged"):
            constants.load(str(path), specs(2))


def test_other_frozen_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "constants" / constants.write(str(tmp_path), 3, specs(1)).file
    with pytest.raises(FailoverError, match=r"the script has \['frozen.a', 'frozen.b', 'buffer.mask'\]"):
        constants.load(str(path), specs(2)[:-1])
    wrong = [spec._replace(tensor=torch.zeros(2)) if spec.name == "frozen.b" else spec for spec in specs(2)]
    with pytest.raises(FailoverError, match=r"frozen.b has 8 bytes, in .* it has 96"):
        constants.load(str(path), wrong)
