from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.errors import FailoverError
from ff_core.state import rng
from ff_core.state.codec import decode, encode


def draw() -> list[Any]:
    return [
        random.random(), random.gauss(0, 1), random.getrandbits(100),
        np.random.rand(), np.random.randn(), int(np.random.randint(1 << 30)),
        torch.rand(3).tolist(), torch.randn(5).tolist(), torch.randperm(9).tolist(),
        torch.nn.functional.dropout(torch.ones(20), 0.5).tolist(),
    ]  # fmt: skip


def test_generators_go_on_from_a_capture() -> None:
    draw()  # leaves a spare Gaussian behind in Python and NumPy, which is part of their states
    saved = decode(encode(rng.capture()))
    first = draw()
    assert draw() != first
    rng.restore(saved)
    assert draw() == first


def test_capture_is_a_copy() -> None:
    saved = rng.capture()
    before = encode(saved)
    draw()
    assert encode(saved) == before


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    with_numpy = rng.capture()
    monkeypatch.setattr(rng, "numpys", None)
    saved = rng.capture()
    assert saved["numpy"] is None
    first = torch.rand(3)
    rng.restore(saved)
    assert torch.equal(torch.rand(3), first)
    with pytest.raises(FailoverError, match="install numpy"):
        rng.restore(with_numpy)


def test_states_that_do_not_fit_change_nothing() -> None:
    before = encode(rng.capture())
    with pytest.raises(FailoverError, match="lack cuda, torch"):
        rng.restore({"python": random.Random(1).getstate(), "numpy": None})
    other = {**rng.capture(), "numpy": None, "torch": bytes(torch.Generator().get_state())}
    devices = [bytes(16)] * (torch.cuda.device_count() + 1)
    with pytest.raises(FailoverError, match="CUDA_VISIBLE_DEVICES"):
        rng.restore({**other, "cuda": devices})
    assert encode(rng.capture()) == before
