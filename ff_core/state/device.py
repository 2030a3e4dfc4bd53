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


def wait_for_stream(device: torch.device | None) -> None:
    """Until what the current stream of `device` was given has run; at once without a device. A collective that can
    complete no more holds it up until its communicator is aborted."""
    if device is None:
        return
    import torch

    torch.cuda.current_stream(device).synchronize()
