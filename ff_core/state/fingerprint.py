"""What two values have in common exactly if they look the same: shapes, dtypes, a sample of the contents.

Of a tensor or array with more than 4096 elements, 4096 of them count, evenly spread. On a CUDA device they are gathered
in the current stream and read when they have arrived: nothing waits for the device unless it is asked to.

    values: tensors, NumPy arrays, plain values; lists, tuples and mappings of them; objects with such attributes
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch

from ff_core.state.arriving import Arriving

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_SAMPLE = 4096
_DEPTH = 20
_PLAIN = (bool, int, float, complex, str, bytes)
_NUMERIC = "biufc"  # kinds of NumPy arrays that torch can take


class Fingerprint:
    """Of `values`, as they are now. forms: checksum of structure, shapes and types."""

    def __init__(self, values: Any) -> None:
        self._forms: list[Any] = []
        self._samples: list[int | Arriving] = []  # checksums, or what will have one
        self._take(values, 0)
        self.forms = zlib.crc32(repr(self._forms).encode())

    @property
    def on_device(self) -> bool:
        """Whether some of the contents come from a device. Until contents() was called."""
        return any(isinstance(sample, Arriving) for sample in self._samples)

    def arrived(self) -> bool:
        """Whether contents() need not wait."""
        return all(isinstance(sample, int) or sample.arrived() for sample in self._samples)

    def contents(self, so_far: int = 0) -> int:
        """Checksum of the contents, continuing the one of other values. Waits until they are here."""
        for place, sample in enumerate(self._samples):
            if not isinstance(sample, int):
                self._samples[place] = _checksum(sample.host())
        return zlib.crc32(struct.pack(f"<{len(self._samples)}I", *self._samples), so_far)

    def value(self) -> str:
        """All of it as 16 hexadecimal digits. Waits as contents()."""
        return f"{self.forms:08x}{self.contents():08x}"

    def _take(self, value: Any, depth: int) -> None:
        if depth > _DEPTH:
            return
        if isinstance(value, torch.Tensor):
            self._forms.append((tuple(value.shape), str(value.dtype)))
            self._take_tensor(value)
        elif isinstance(value, Mapping):
            self._forms.append(("mapping", len(value)))
            for key in value:
                self._take_plain(key)
                self._take(value[key], depth + 1)
        elif isinstance(value, (list, tuple)):
            self._forms.append(("sequence", len(value)))
            for item in value:
                self._take(item, depth + 1)
        elif np is not None and isinstance(value, (np.ndarray, np.generic)):
            self._forms.append((value.shape, str(value.dtype), "numpy"))
            self._take_array(value, depth)
        elif isinstance(value, _PLAIN):
            self._take_plain(value)
        else:
            self._forms.append(type(value).__qualname__)
            if hasattr(value, "__dict__") and not callable(value):  # modules and classes are callable
                self._take(vars(value), depth + 1)

    def _take_plain(self, value: Any) -> None:
        self._forms.append(type(value).__qualname__)
        if isinstance(value, _PLAIN):
            self._samples.append(zlib.crc32(repr(value).encode()))

    def _take_array(self, value: Any, depth: int) -> None:
        array = np.asarray(value)
        if array.dtype.kind in _NUMERIC and array.dtype.isnative:
            self._take_tensor(torch.from_numpy(np.ascontiguousarray(_thinned(array.reshape(-1), array.size))))
        elif array.dtype.hasobject:
            self._take(array.reshape(-1)[:_SAMPLE].tolist(), depth + 1)
        else:  # texts, dates, records
            self._samples.append(zlib.crc32(_thinned(array.reshape(-1), array.size).tobytes()))

    def _take_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_meta:
            return
        flat = tensor.detach().reshape(-1)
        sample = _thinned(flat, flat.numel()).resolve_conj().resolve_neg()
        if sample.device.type == "cpu":
            self._samples.append(_checksum(sample))
            return
        self._samples.append(Arriving(sample))


def _thinned(flat: Any, size: int) -> Any:
    return flat[:: size // _SAMPLE][:_SAMPLE] if size > _SAMPLE else flat


def _checksum(flat: torch.Tensor) -> int:
    return zlib.crc32(flat.contiguous().view(torch.uint8).numpy().data) if flat.numel() else 0
