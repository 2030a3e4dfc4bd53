"""The state of every random number generator that training may use: Python, NumPy (legacy global), torch CPU and CUDA.

    saved = capture()    # plain values and tensors, see ff_core.state.codec
    restore(saved)       # the generators go on as they would have after capture()

Generators that a script makes itself (torch.Generator, numpy.random.Generator) are not found here; register their state
with `ff_core.register_state`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.errors import FailoverError

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_WORDS = struct.Struct(f"<{len(random.getstate()[1])}I")


def capture() -> dict[str, Any]:
    """The generators' states, copied: {"python", "numpy" (None without NumPy), "torch", "cuda": one tensor per device}.

    Python's is [version, its words as bytes, spare Gaussian]: words one by one would be most of what a version encodes.
    "cuda" is empty until CUDA is in use, so that asking does not create a context.
    """
    version, words, gaussian = random.getstate()
    return {
        "python": [version, _WORDS.pack(*words), gaussian],
        "numpy": None if np is None else np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


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
    if saved["numpy"] is not None and np is None:
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
        np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    for device, state in enumerate(saved["cuda"]):
        torch.cuda.set_rng_state(state, device)
