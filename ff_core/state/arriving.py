"""A small tensor on its way from a device to the host. Nothing waits for the device unless it is asked to."""

from __future__ import annotations

import torch


class Arriving:
    """What `tensor` holds where the current stream of its device is now. One of the host is there at once, no copy."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host, self._event = tensor.detach(), None
        if tensor.device.type != "cpu":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> bool:
        """Any thread. False: host() would wait."""
        return self._event is None or self._event.query()

    def host(self) -> torch.Tensor:
        """On the CPU. Waits until it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
