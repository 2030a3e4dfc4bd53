from __future__ import annotations

import pytest
import torch

from ff_core.adapter import Held, TensorSpec
from ff_core.state.device import device_of, step_stream, wait_for_stream
from ff_core.state.razor import make_plan


def test_host_tensors_have_no_stream() -> None:
    plan = make_plan([TensorSpec("a", torch.zeros(10), Held.UNIQUE)])
    assert device_of(plan) is None
    assert step_stream(None) == 0
    wait_for_stream(None)


def test_the_current_stream_of_the_tensors_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    specs = [
        TensorSpec("host", torch.zeros(10), Held.UNIQUE),
        TensorSpec("device", torch.zeros(10, device="cuda:0"), Held.UNIQUE),
    ]
    device = device_of(make_plan(specs))
    assert device == torch.device("cuda", 0)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        assert step_stream(device) == stream.cuda_stream != 0
        torch.cuda._sleep(100_000_000)
        wait_for_stream(device)
        assert stream.query()
    assert step_stream(device) == torch.cuda.default_stream(device).cuda_stream
