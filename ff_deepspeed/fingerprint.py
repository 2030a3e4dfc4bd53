"""A short text that two batches have in common exactly if they look the same: shapes, dtypes, a sample of the values.

A CUDA device is not waited for: the sample is taken in the stream that is current, and read when it is asked for, in a
stream of its own.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_ELEMENTS = 4096  # of each tensor, evenly spread


class Fingerprint:
    """Of one batch, as it is now."""

    def __init__(self, batch: Any) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._samples: list[torch.Tensor] = []
        self._events: dict[torch.device, torch.cuda.Event] = {}
        self._take(batch)
        for device in {sample.device for sample in self._samples if sample.is_cuda}:
            self._events[device] = torch.cuda.current_stream(device).record_event()

    def value(self) -> str:
        """32 hexadecimal digits."""
        for sample in self._samples:
            self._hash.update(self._on_cpu(sample).view(torch.uint8).numpy().tobytes())
        self._samples = []
        return self._hash.hexdigest()

    def _on_cpu(self, sample: torch.Tensor) -> torch.Tensor:
        if not sample.is_cuda:
            return sample.cpu()
        stream = torch.cuda.Stream(sample.device)
        stream.wait_event(self._events[sample.device])
        with torch.cuda.stream(stream):
            return sample.cpu()

    def _take(self, part: Any) -> None:
        if isinstance(part, torch.Tensor):
            self._hash.update(f"{part.dtype}{tuple(part.shape)}".encode())
            if part.layout is torch.strided and not part.is_meta:
                flat = part.detach().reshape(-1)
                self._samples.append(flat[:: max(1, flat.numel() // _ELEMENTS)].resolve_conj().clone())
        elif isinstance(part, dict):
            for key, value in part.items():
                self._hash.update(repr(key).encode())
                self._take(value)
        elif isinstance(part, (list, tuple)):
            self._hash.update(f"{len(part)}".encode())
            for value in part:
                self._take(value)
        elif part is None or isinstance(part, (bool, int, float, str, bytes)):
            self._hash.update(repr(part).encode())
        elif hasattr(part, "__dict__"):
            self._take(vars(part))


def resolved(position: dict[str, Any]) -> dict[str, Any]:
    """`position` with the values of the fingerprints in it, so that it can be encoded."""
    return {key: value.value() if isinstance(value, Fingerprint) else value for key, value in position.items()}
