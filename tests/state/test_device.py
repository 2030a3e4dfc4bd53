from __future__ import annotations

from typing import Any

import pytest
import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.state.device import DeviceClock, captured, device_of, step_stream, wait_for_stream
from ff_core.state.razor import make_plan


def test_host_tensors_have_no_stream() -> None:
    plan = make_plan([TensorSpec("a", torch.zeros(10), Held.UNIQUE)])
    assert device_of(plan) is None
    assert step_stream(None) == 0
    wait_for_stream(None)
    assert not captured(None)


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


class Event:
    """As torch's, of a device that passes moments when it is told to. `at`: milliseconds."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "current of cuda:1"

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, end: Event) -> float:
        if self.at is None or end.at is None:
            raise RuntimeError("both events must be completed")
        return end.at - self.at


def test_moments_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"current of {device}")
    clock: Any = DeviceClock(torch.device("cuda", 1))
    start, end = clock.now(), clock.now()
    assert clock.seconds(start, end) is None
    end.at = 250.0  # the script changed streams in between: the later moment may come first
    assert clock.seconds(start, end) is None
    start.at = 100.0
    assert clock.seconds(start, end) == 0.15
    assert clock.seconds(end, start) == 0.0
