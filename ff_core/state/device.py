"""The CUDA device and stream that a rank's step runs on, as the copy engine takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ff_core.state.razor import Plan


def device_of(plan: Plan) -> torch.device | None:
    """The CUDA device on which copied tensors lie; None: all are on the host."""
    return next((s.tensor.device for s in plan.segments if s.tensor.device.type == "cuda"), None)


def step_stream(device: torch.device | None) -> int:
    """The current stream of `device`, a CUstream as a number; 0 without a device. Call it in the training thread."""
    if device is None:
        return 0
    import torch

    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


class DeviceClock:
    """`ff_core.worker.pacing.Clock` of the current stream of `device`: a moment is when the device comes to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        """See Clock; an event on the current stream."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """See Clock."""
        if not (start.query() and end.query()):
            return None
        return max(0.0, start.elapsed_time(end) / 1000)  # two streams, if the script changed them in between


def captured(device: torch.device | None) -> bool:
    """Whether the current stream of `device` records a CUDA graph: what it is given now does not run now."""
    if device is None:
        return False
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_current_stream_capturing())


def wait_for_stream(device: torch.device | None) -> None:
    """Until what the current stream of `device` was given has run; at once without a device. A collective that can
    complete no more holds it up until its communicator is aborted."""
    if device is None:
        return
    import torch

    torch.cuda.current_stream(device).synchronize()


def wait_until_idle(device: torch.device | None = None) -> None:
    """Until `device` has run all that this process has given it; None: the calling thread's, if any is in use. After a
    halt: collectives of the dead are over milliseconds after their abort has begun."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize(device)
