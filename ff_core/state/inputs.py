"""Proof that a redone iteration gets what the interrupted one got: fingerprints of the engine's inputs.

While an iteration runs, each rank notes what was given to its engine. It notes the state of the random number
generators at the iteration's begin, and the shapes, dtypes and bytes of every call's tensors. The notes lie in the
rank's arena, which outlives the process. When the iteration is done again, by a survivor or by the replacement, the
notes must be the same up to where the first attempt came. `check` says so before the optimizer steps.

Of large tensors a sample counts (`ff_core.state.fingerprint`). Nothing waits for a device, unless an iteration is being
checked.

    | notes: 51 entries, little-endian; 32-bit: iteration + 1, calls; 64-bit: random state, shapes, contents |
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch

from ff_core.errors import DifferenceError
from ff_core.state.fingerprint import Fingerprint

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_ENTRY = struct.Struct("<2I3Q")
ENTRIES = 51
"""As many as fit into an arena's header. More than are redone at the longest interval that is chosen by itself."""
BYTES = _ENTRY.size * ENTRIES
"""Of memory that outlives the process, for `Inputs`."""
_KINDS = ("the random number generators' state at its begin", "the shapes or types", "the contents")


@dataclass(slots=True)
class Noted:
    """What one iteration was given. calls: after each call of the engine, the digest of (shapes, contents) so far."""

    random: int = 0
    calls: list[tuple[int, int]] = field(default_factory=list)


class Inputs:
    """The notes of one rank. notes: writable memory of BYTES that outlives this process, zero at first."""

    def __init__(self, rank: int, notes: memoryview) -> None:
        self._rank, self._notes = rank, notes
        self._noted: dict[int, Noted] = {}
        self._expected: dict[int, tuple[int, int, int, int]] = {}  # iteration -> calls, random, shapes, contents
        self._arriving: list[tuple[int, int, Fingerprint]] = []

    def take_over(self) -> None:
        """In a replacement: what the dead rank noted is what this one must be given."""
        for place in range(ENTRIES):
            number, *entry = _ENTRY.unpack_from(self._notes, place * _ENTRY.size)
            if number:
                calls, noted, shapes, contents = entry
                self._expected[number - 1] = (calls, noted, shapes, contents)

    def again(self, version: int) -> None:
        """The iterations after `version` will be given again."""
        self._settle(wait=True)
        for iteration in [n for n in self._noted if n > version]:
            noted = self._noted.pop(iteration)
            calls = len(noted.calls)
            if calls > self._expected.get(iteration, (0,))[0]:
                self._expected[iteration] = (calls, noted.random, *noted.calls[-1])

    def given(self, iteration: int, values: Any) -> None:
        """The engine is called with `values`: tensors, arrays, plain values, and lists, tuples and dicts of them."""
        self._settle(wait=False)
        noted = self._noted.get(iteration)
        if noted is None:
            noted = self._noted[iteration] = Noted(_random_state())
            self._noted.pop(iteration - ENTRIES, None)
            self._expected.pop(iteration - ENTRIES, None)
        taken = Fingerprint(values)
        shapes, _ = noted.calls[-1] if noted.calls else (0, 0)
        noted.calls.append((zlib.crc32(struct.pack("<I", taken.forms), shapes), 0))
        self._arriving.append((iteration, len(noted.calls) - 1, taken))
        self._settle(wait=False)

    def check(self, iteration: int) -> None:
        """Before the step of `iteration`: raises DifferenceError if it was given something else than before."""
        expected = self._expected.get(iteration)
        noted = self._noted.get(iteration)
        if expected is None or noted is None:
            return
        self._settle(wait=True)
        calls, *before = expected
        count = min(calls, len(noted.calls))
        now = (noted.random, *noted.calls[count - 1])
        wrong = [kind for kind, a, b in zip(_KINDS, before, now, strict=True) if a != b]
        if count < calls:
            wrong = ["the number"]
        if not wrong:
            return
        verb = "is" if wrong in ([_KINDS[0]], ["the number"]) else "are"
        raise DifferenceError(
            f"rank {self._rank} was to repeat iteration {iteration} after a failure, but {' and '.join(wrong)} of what "
            f"its script gives to the engine {verb} not what they were before the failure (first {calls} of its "
            f"micro-batches). Training on would give other results, "
            "so the job stops. What decides about the batches must be in each version: take them from "
            "`ff_deepspeed.batches(engine, loader)`, register what holds a position in the data or a generator of its "
            "own with `ff_core.register_state(name, obj)`, and give `ff_deepspeed.client_state(...)` the rest"
        )

    def _settle(self, wait: bool) -> None:
        """Add the contents that have arrived to the digests, in the order of the calls, and note them."""
        while self._arriving:
            iteration, call, taken = self._arriving[0]
            if not wait and not taken.arrived():
                return
            self._arriving.pop(0)
            noted = self._noted.get(iteration)
            if noted is None:
                continue
            noted.calls[call] = (noted.calls[call][0], taken.contents(noted.calls[call - 1][1] if call else 0))
            entry = (iteration + 1, call + 1, noted.random, *noted.calls[call])
            # The number goes in last: an entry that was being written when the process died does not count.
            offset = iteration % ENTRIES * _ENTRY.size
            struct.pack_into("<I", self._notes, offset, 0)
            struct.pack_into("<I3Q", self._notes, offset + 4, *entry[1:])
            struct.pack_into("<I", self._notes, offset, entry[0])


def _random_state() -> int:
    python: Any = random.getstate()
    # Not the hash of the whole: that of None is another in each process.
    digest = zlib.crc32(repr((hash(python[1]), python[2])).encode())
    digest = zlib.crc32(_bytes(torch.get_rng_state()), digest)
    if np is not None:
        legacy: Any = np.random.get_state()
        digest = zlib.crc32(legacy[1].tobytes() + repr(legacy[2:]).encode(), digest)
    if torch.cuda.is_initialized():
        for state in torch.cuda.get_rng_state_all():
            digest = zlib.crc32(_bytes(state), digest)
    return digest


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
