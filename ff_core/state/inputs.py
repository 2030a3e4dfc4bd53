"""Proof that a redone iteration gets what the interrupted one got: fingerprints of the engine's inputs.

While an iteration runs, each rank notes what was given to its engine. It notes the state of the random number
generators at the iteration's begin, and the shapes, dtypes and bytes of every call's tensors. The notes lie in the
rank's arena, which outlives the process. When the iteration is done again, by a survivor or by the replacement, the
notes must be the same up to where the first attempt came. `check` says so before the optimizer steps.

Of large tensors a sample counts (`ff_core.state.fingerprint`). Nothing waits for a device, unless an iteration is being
checked.

Losses are noted too: a weight of the loss may come from a count of the script's own. On the CPU, and where torch was
asked for deterministic algorithms, they must be the same to the bit; elsewhere nearly so, as kernels may add in another
order.

A halt aborts the collectives that a device is in. What it computes behind them is made of whatever lay in memory: only
what had arrived by then is noted (`halting`).

    | notes: 51 entries, little-endian; 32-bit: iteration + 1; 16-bit: calls, losses; |
    | 32-bit: random state, shapes, contents; double: sum of the losses               |
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ff_core.contract.adapter import Remedies
from ff_core.errors import DifferenceError
from ff_core.state import rng
from ff_core.state.arriving import Arriving
from ff_core.state.fingerprint import Fingerprint
from ff_core.state.words import some_of

_ENTRY = struct.Struct("<I2H3Id")
ENTRIES = 51
"""As many as fit into an arena's header. More than are redone at the longest interval that is chosen by itself."""
BYTES = _ENTRY.size * ENTRIES
"""Of memory that outlives the process, for `Inputs`."""
_NEARLY = 1e-4
"""Relative, of two losses that may have been added up in another order; more in a low precision."""
_MOST = 0xFFFF  # micro-batches of an iteration that are compared
_LOSS_REMEDY = (
    "A weight or a schedule of the loss most likely counts by itself: a replacement begins that count anew, and a "
    "repeated iteration counts twice. Compute it from {remedies.counter}, or save the count: {remedies.save}"
)
_GIVEN_REMEDY = (
    "What decides about the batches must be in each version. Take them from {remedies.batches}, and have saved what "
    "else holds a position in the data or a generator of its own: {remedies.save}"
)
_KINDS = ("the random number generators' state at its begin", "the shapes or types", "the contents")


@dataclass(slots=True)
class Noted:
    """What one iteration was given. calls: after each call of the engine, the digest of (shapes, contents) so far."""

    random: int = 0
    calls: list[tuple[int, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # after each of them, their sum so far
    nearly: float = 0.0  # how much, relatively, a repeated loss may differ
    cut: bool = False  # by a halt: what came later is not noted

    def until(self, calls: int, losses: int) -> tuple[int, int, int, float]:
        """Random state, shapes, contents and sum of the losses after so many of each."""
        return self.random, *(self.calls[calls - 1] if calls else (0, 0)), self.losses[losses - 1] if losses else 0.0


@dataclass(slots=True)
class _Pending:
    """What may be on its way from a device. call: its place among the iteration's calls; of a loss, how many came
    before.  whole: it was there before a halt, or is of no device."""

    iteration: int
    call: int
    what: Fingerprint | Arriving
    whole: bool


class Inputs:
    """The notes of one rank. notes: writable memory of BYTES that outlives this process, zero at first."""

    def __init__(self, rank: int, notes: memoryview, remedies: Remedies) -> None:
        self._rank, self._notes, self._remedies = rank, notes, remedies
        self._noted: dict[int, Noted] = {}
        self._expected: dict[int, tuple[Any, ...]] = {}  # iteration -> calls, losses, random, shapes, contents, sum
        self._arriving: list[_Pending] = []
        self._losses: list[_Pending] = []
        self._halted = 0  # the epoch that a halt announced, until recovered()

    def take_over(self) -> None:
        """In a replacement: what the dead rank noted is what this one must be given."""
        for place in range(ENTRIES):
            number, *entry = _ENTRY.unpack_from(self._notes, place * _ENTRY.size)
            if number:
                self._expected[number - 1] = tuple(entry)

    def again(self, version: int) -> None:
        """The iterations after `version` will be given again."""
        self._settle(wait=True)
        for iteration in [n for n in self._noted if n > version]:
            noted = self._noted.pop(iteration)
            calls, losses = len(noted.calls), len(noted.losses)
            if (calls, losses) > self._expected.get(iteration, (0, 0))[:2]:
                self._expected[iteration] = (calls, losses, *noted.until(calls, losses))

    def halting(self, epoch: int) -> None:
        """Watchdog thread: the collectives will be aborted, for `epoch` to begin."""
        self._halted = epoch  # first: what arrives from here on may be wrong
        for pending in [*self._arriving, *self._losses]:
            pending.whole = pending.whole or pending.what.arrived()

    def recovered(self, epoch: int) -> None:
        """`epoch` has begun."""
        self._settle(wait=True)
        if self._halted <= epoch:
            self._halted = 0

    def given(self, iteration: int, values: Any) -> None:
        """The engine is called with `values`: tensors, arrays, plain values, and lists, tuples and dicts of them."""
        self._settle(wait=False)
        noted = self._noted.get(iteration)
        if noted is None:
            noted = self._noted[iteration] = Noted(rng.digest())
            self._noted.pop(iteration - ENTRIES, None)
            self._expected.pop(iteration - ENTRIES, None)
        if noted.cut:
            return
        taken = Fingerprint(values)
        shapes, _ = noted.calls[-1] if noted.calls else (0, 0)
        noted.calls.append((zlib.crc32(struct.pack("<I", taken.forms), shapes), 0))
        self._arriving.append(_Pending(iteration, len(noted.calls) - 1, taken, not taken.on_device))
        self._settle(wait=False)

    def loss(self, iteration: int, value: torch.Tensor) -> None:
        """A backward pass begins from `value`, a loss with one element."""
        noted = self._noted.get(iteration)
        if noted is None or noted.cut or value.numel() != 1:
            return
        value = value.detach()
        noted.nearly = tolerance(value) or noted.nearly
        on_device = value.device.type != "cpu"
        arriving = Arriving(value if on_device else value.clone())  # the script may write into it
        self._losses.append(_Pending(iteration, len(noted.calls), arriving, not on_device))
        self._settle(wait=False)

    def check(self, iteration: int, missing: Sequence[str] = ()) -> None:
        """Before the step of `iteration`: raises DifferenceError if it was given something else than before.

        missing: names of what has lost entries with the failure: the likely reason.
        """
        expected = self._expected.get(iteration)
        noted = self._noted.get(iteration)
        if expected is None or noted is None:
            return
        self._settle(wait=True)
        calls, losses, *before, loss = expected
        count, of_losses = min(calls, len(noted.calls)), min(losses, len(noted.losses))
        *now, loss_now = noted.until(count, of_losses)
        wrong = [kind for kind, a, b in zip(_KINDS, before, now, strict=True) if a != b]
        if (count < calls or of_losses < losses) and not noted.cut:
            wrong = ["the number"]
        if not wrong and not _alike(loss, loss_now, noted.nearly):
            raise DifferenceError(
                f"rank {self._rank} was to repeat iteration {iteration} after a failure. Its engine was given the "
                f"same, but the loss differs: the first {losses} of its micro-batches had {loss!r} in all before the "
                f"failure, and have {loss_now!r} now. "
                + (_reason(missing) or _LOSS_REMEDY.format(remedies=self._remedies))
            )
        if not wrong:
            return
        verb = "is" if wrong in ([_KINDS[0]], ["the number"]) else "are"
        raise DifferenceError(
            f"rank {self._rank} was to repeat iteration {iteration} after a failure, but {' and '.join(wrong)} of what "
            f"its script gives to the engine {verb} not what they were before the failure (first {calls} of its "
            f"micro-batches). Training on would give other results, "
            f"so the job stops. {_GIVEN_REMEDY.format(remedies=self._remedies)}"
            + (f". {_reason(missing)}" if missing else "")
        )

    def _settle(self, wait: bool) -> None:
        """Add the contents that have arrived to the digests, in the order of the calls, and note them."""
        for waiting in (self._arriving, self._losses):
            while waiting:
                if not wait and not waiting[0].what.arrived():
                    return
                pending = waiting.pop(0)
                noted = self._noted.get(pending.iteration)
                if noted is not None and pending.call < len(noted.calls) + (waiting is self._losses):
                    self._take(pending, noted)

    def _take(self, pending: _Pending, noted: Noted) -> None:
        """Waits until it is there."""
        what, call = pending.what, pending.call
        if isinstance(what, Fingerprint):
            value: Any = what.contents(noted.calls[call - 1][1] if call else 0)
        else:
            value = float(what.host()) + (noted.losses[-1] if noted.losses else 0.0)
        if noted.cut or (self._halted and not pending.whole):  # asked last: what was there before it is right
            noted.cut = True
            del noted.calls[call:]
            return
        if isinstance(what, Fingerprint):
            noted.calls[call] = (noted.calls[call][0], value)
        else:
            noted.losses.append(value)
        self._note(pending.iteration, noted, call + 1 if isinstance(what, Fingerprint) else len(noted.calls))

    def _note(self, iteration: int, noted: Noted, calls: int) -> None:
        """Into the memory that outlives the process."""
        losses = len(noted.losses)
        # The number goes in last: an entry that was being written when the process died does not count.
        offset = iteration % ENTRIES * _ENTRY.size
        struct.pack_into("<I", self._notes, offset, 0)
        entry = (min(calls, _MOST), min(losses, _MOST), *noted.until(min(calls, _MOST), min(losses, _MOST)))
        struct.pack_into("<2H3Id", self._notes, offset + 4, *entry)
        struct.pack_into("<I", self._notes, offset, iteration + 1)


def _reason(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    return (
        f"The rank goes on without the earlier entries of {some_of(missing)}: so long lists are not saved. Register "
        "them: `ff_core.register_state(name, obj)` with state_dict() and load_state_dict()"
    )


def tolerance(value: torch.Tensor) -> float:
    """How much, relatively, it may differ when it is computed again: kernels of a device may add in another order."""
    if value.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return 0.0
    return max(_NEARLY, 4 * torch.finfo(value.dtype).eps)


def _alike(a: float, b: float, nearly: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=nearly)
