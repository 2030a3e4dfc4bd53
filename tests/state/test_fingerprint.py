"""Equal exactly for what looks equal, whatever kind of batch it is."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state.fingerprint import Fingerprint

Pair = namedtuple("Pair", "x y")


@dataclass
class Batch:
    ids: Any
    count: int = 3


def of(value: Any) -> str:
    return Fingerprint(value).value()


SAMPLES: dict[str, Any] = {
    "tensor": torch.arange(6),
    "another": torch.arange(1, 7),
    "shape": torch.arange(6).reshape(2, 3),
    "dtype": torch.arange(6, dtype=torch.int32),
    "bf16": torch.arange(6, dtype=torch.bfloat16),
    "conjugate": torch.tensor([1 + 2j, 2j]).conj(),
    "not conjugate": torch.tensor([1 + 2j, 2j]),
    "strided": torch.arange(12)[::2],
    "large": torch.arange(100_000),
    "another large one": torch.arange(1, 100_001),
    "array": np.arange(6),
    "another array": np.arange(1, 7),
    "of texts": np.array(["a", "b"]),
    "of other texts": np.array(["a", "c"]),
    "of objects": np.array([{"a": 1}, None], dtype=object),
    "of other objects": np.array([{"a": 2}, None], dtype=object),
    "number of numpy": np.float32(1.5),
    "another number of numpy": np.float32(2.5),
    "list": [torch.arange(2), 3],
    "nested": [[torch.arange(2)], 3],
    "tuple with names": Pair(1, torch.arange(2)),
    "dict": {"ids": torch.arange(2), "n": 1},
    "another dict": {"ids": torch.arange(2), "n": 2},
    "mapping": UserDict({"ids": torch.arange(3)}),
    "object": Batch(torch.arange(2)),
    "another object": Batch(torch.arange(1, 3)),
    "with an array": Batch(np.arange(2)),
    "with another array": Batch(np.arange(1, 3)),
    "text": "text",
    "none": None,
}


def test_each_is_told_apart() -> None:
    assert len({of(value) for value in SAMPLES.values()}) == len(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_again(name: str) -> None:
    value = SAMPLES[name]
    copied = value.clone() if torch.is_tensor(value) else value.copy() if isinstance(value, np.ndarray) else value
    assert of(copied) == of(value) and len(of(value)) == 16


def test_as_it_was_then() -> None:
    """In-place changes afterwards do not count."""
    value = [torch.zeros(4), np.zeros(4)]
    taken = Fingerprint(value)
    before = of(value)
    value[0] += 1
    value[1] += 1
    assert taken.arrived() and taken.value() == before != of(value)


def test_contents_go_on() -> None:
    one, other = Fingerprint(torch.ones(2)), Fingerprint(torch.zeros(2))
    assert other.contents(one.contents()) != one.contents(other.contents())


def test_what_contains_itself() -> None:
    value: list[Any] = [1]
    value.append(value)
    assert of(value) == of(value)
