"""The state of every random number generator that training may use: Python, NumPy (legacy global), torch CPU and CUDA.

    saved = capture()    # plain values, see ff_core.state.codec
    restore(saved)       # the generators go on as they would have after capture()

Generators that a script makes itself (torch.Generator, numpy.random.Generator) are not found here; register their state
with `ff_core.register_state`.
"""

from __future__ import annotations

import marshal
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.errors import FailoverError
from ff_core.state.codec_values import bytes_of

try:
    from ff_core.state import numpys
except ImportError:  # torch works without NumPy
    numpys = None  # type: ignore[assignment]

_WITHOUT_REFERENCES = 2  # newer formats say which objects are held elsewhere, too
_WORDS = struct.Struct(f"<{len(random.getstate()[1])}I")


def capture() -> dict[str, Any]:
    """The generators' states, copied: {"python", "numpy" (None without NumPy), "torch", "cuda": one per device}.

    Torch's are bytes. Python's is [version, its words as bytes, spare Gaussian], NumPy's see `ff_core.state.numpys`:
    words one by one would be most of what a version encodes. "cuda" is empty until CUDA is in use, so that asking does
    not create a context.
    """
    version, words, gaussian = random.getstate()
    return {
        "python": [version, _WORDS.pack(*words), gaussian],
        "numpy": None if numpys is None else numpys.state(),
        "torch": bytes_of(torch.get_rng_state()),
        "cuda": list(map(bytes_of, torch.cuda.get_rng_state_all())) if torch.cuda.is_initialized() else [],
    }


def digest() -> int:
    """32 bits of what the generators' states are, the same in another process that has the same."""
    return zlib.crc32(marshal.dumps(capture(), _WITHOUT_REFERENCES))


@contextmanager
def kept() -> Iterator[None]:
    """The generators go on behind the block as if it had drawn nothing."""
    states = capture()
    try:
        yield
    finally:
        restore(states)


def restore(saved: dict[str, Any]) -> None:
    """Put `capture()`'s states back. Raises FailoverError, with nothing changed, when they do not fit this process."""
    missing = {"python", "numpy", "torch", "cuda"} - saved.keys()
    if missing:
        raise FailoverError(f"random number states lack {', '.join(sorted(missing))}")
    if saved["numpy"] is not None and numpys is None:
        raise FailoverError("random number states hold one of NumPy, which this process does not have: install numpy")
    devices = torch.cuda.device_count() if saved["cuda"] else 0
    if len(saved["cuda"]) > devices:
        raise FailoverError(
            f"random number states hold {len(saved['cuda'])} CUDA devices, this process sees {devices}: "
            "make the same devices visible to every worker (CUDA_VISIBLE_DEVICES)"
        )
    version, words, gaussian = saved["python"]
    random.setstate((version, _WORDS.unpack(words), gaussian))
    if saved["numpy"] is not None:
        numpys.set_state(saved["numpy"])
    torch.set_rng_state(_tensor(saved["torch"]))
    for device, state in enumerate(saved["cuda"]):
        torch.cuda.set_rng_state(_tensor(state), device)


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
