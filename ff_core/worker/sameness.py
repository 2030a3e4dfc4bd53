"""Proof that the ranks are still alike: hyperparameters after a failure, weights after a failure and now and then.

    before the first steps after a failure    hyperparameters, weights and counts are compared, and waited for
    before each later one                     a checksum of the hyperparameters; looked at before the step after it
    before step 1, and every 256th            checksums of the weights; looked at before the step after it

Before a failure hyperparameters are only noted (`ff_core.state.hyperparameters`): what the script does then is what it
wants. Every rank comes here before every step, so collectives are in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ff_core.comm import exchange
from ff_core.contract.schedule import KEPT, MOST
from ff_core.errors import DifferenceError, UnsupportedError
from ff_core.state import checksums, codec, found, hyperparameters, variables
from ff_core.state.hyperparameters import Noted, Repeated, Shown
from ff_core.state.ranks import listed
from ff_core.state.words import some_of

if TYPE_CHECKING:
    import torch.distributed as dist

    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.adapter import Replicas, TrainerAdapter
    from ff_core.worker.parts import WorkerParts

_CLOSELY = 8  # steps, beside those that may have been interrupted; the same on all ranks: collectives depend on it
_WEIGHTS_EVERY = 256
_WEIGHTS_AFTER = 3  # steps after a failure
_COUNTED_AT = (2, 3)  # of these steps: by then a survivor has come to where it would be without the failure

DIFFERENT = (
    "after a failure the ranks would make step {step} with different hyperparameters: {what}. In version {version}, "
    "where the job goes on from, they were the same on these ranks. "
)
LATE = (
    "the ranks have made step {step} with different hyperparameters: {what}. Until the failure in version {version} "
    "they were the same on these ranks. The results from step {step} on are not those of an uninterrupted run: go on "
    "from a checkpoint before it. "
)
WEIGHTS = (
    "{what}, before step {step}. These ranks must hold the same: they train one model. Training on would give other "
    "results than an uninterrupted run. A script that writes weights outside of the optimizer step has to do the same "
    "on every rank"
)
COUNTS = (
    "after a failure counts of the script are not the same on all ranks: {what}. In version {version}, where the job "
    "went on from, they were. A loop over range(), zip() or a generator of its own counts anew in a replacement, or "
    "once too often where an iteration is repeated. Count by {remedies.counter}, or save the count: {remedies.save}"
)
FROM_THE_START = (
    "{what}, before the first step. FFTrainer takes these tensors to be the same on these ranks, and would give a "
    "replacement those of another rank. Begin from the same seed on all of them, or broadcast the tensors from one"
)


class Sameness:
    """Of one rank's training.

    notes: hyperparameters.BYTES of memory that outlives the process.  whole: the group of all ranks to be used; None:
    WORLD.
    """

    def __init__(
        self,
        parts: WorkerParts,
        adapter: TrainerAdapter,
        notes: memoryview,
        config: FailoverConfig,
        whole: Callable[[], dist.ProcessGroup | None],
    ) -> None:
        self._rank, self._size, self._fence = parts.rank, parts.world_size, parts.fence
        self._whole = whole
        self._adapter, self._verdict_timeout_s = adapter, config.verdict_timeout_s
        self._closely = _CLOSELY + KEPT * (MOST if config.interval == "auto" else config.interval)
        self._repeated, self._noted = Repeated(parts.rank, notes, adapter.remedies), Noted()
        self._newcomer = False
        self._version: int | None = None  # that the last failure went back to
        self._counts: dict[str, int] = {}  # of the script, in it
        self._counted: list[list[Any]] = []
        self._before: dict[str, Any] = {}  # hyperparameters in it
        self._closely_until = 0
        self._common: frozenset[str] = frozenset()
        self._asked: tuple[int, exchange.Alike, Shown] | None = None  # step, hyperparameters in it
        self._asked_weights: list[tuple[int, Replicas, exchange.Alike]] = []

    # ---- after a failure --------------------------------------------------------------------------------------------

    def joined(self, version: int, counts: Mapping[str, int]) -> None:
        """This process has taken a dead rank's place, in `version`. counts: whole numbers of the script in it."""
        self._repeated.take_over()
        self._newcomer = True
        self._resumed(version, counts)

    def recovered(self, version: int, counts: Mapping[str, int]) -> None:
        """After a failure, this rank is back in `version`."""
        self._newcomer = False
        self._repeated.again(version)
        self._resumed(version, counts)

    def forget(self) -> None:
        """A failure: nobody will answer what was asked."""
        self._asked, self._asked_weights = None, []

    def _resumed(self, version: int, counts: Mapping[str, int]) -> None:
        self.forget()
        self._counts, self._counted = dict(counts), []
        self._version, self._closely_until = version, version + self._closely
        self._before = self._values()

    # ---- before a step ----------------------------------------------------------------------------------------------

    def before_step(self, step: int) -> None:
        """Raises DifferenceError or UnsupportedError, on every rank that is concerned; FailoverInterrupt."""
        self.settle()
        values, checksum = self._noted.of(self._groups())
        if self._size > 1:
            self._compare_ranks(step, values)
        self._repeated.uses(step, values, checksum)

    def _compare_ranks(self, step: int, values: dict[str, Any]) -> None:
        if self._version is not None and step <= self._closely_until:
            self._compare(step)
        elif self._version is not None:
            self._ask(step, values)
        after = 0 if self._version is None else step - self._version
        if 0 < after <= _WEIGHTS_AFTER:
            self._compare_weights(list(self._adapter.replicas()), step)
        elif step == 1 or step % _WEIGHTS_EVERY == 0:
            self._ask_weights(step)
        if after in _COUNTED_AT:
            self._compare_counts(step)

    def _compare_counts(self, step: int) -> None:
        """What counts alike on all ranks, and was the same in the version that they went back to, is the same."""
        self._counted.append(self._gather([self._newcomer, self._counts, variables.of_process.counts()]))
        if len(self._counted) < len(_COUNTED_AT):
            return
        earlier, told = self._counted
        self._counted = []
        wrong = []
        for name in frozenset(self._counts).intersection(*(now for _, _, now in [*earlier, *told])):
            before = {was.get(name) for _, was, _ in told}
            by = {later[2][name] - sooner[2][name] for sooner, later in zip(earlier, told, strict=True)}
            if len(before) == 1 and len(by) == 1 and by != {0} and len({now[name] for _, _, now in told}) > 1:
                newcomers = {rank for rank, (newcomer, _, _) in enumerate(told) if newcomer}
                ranks: dict[int, list[int]] = {}
                for rank, (_, _, now) in enumerate(told):
                    ranks.setdefault(now[name], []).append(rank)
                shown = " and ".join(f"{value} on {listed(those, newcomers)}" for value, those in ranks.items())
                wrong.append(f"{name} is {shown}")
        if wrong:
            some, remedies = some_of(sorted(wrong), between="; "), self._adapter.remedies
            raise DifferenceError(COUNTS.format(what=some, version=self._version, remedies=remedies))

    def settle(self) -> None:
        """Look at what was asked before. Raises as before_step()."""
        asked, self._asked = self._asked, None
        if asked is not None:
            step, alike, shown = asked
            if alike.different():
                self._compare_shown(shown, LATE, step)
        weights, self._asked_weights = self._asked_weights, []
        for step, replicas, alike in weights:
            if alike.different():
                self._compare_weights([replicas], step)

    def _groups(self) -> list[Mapping[str, Any]]:
        return [*self._adapter.hyperparameters(), *found.hyperparameters()]

    def _values(self) -> dict[str, Any]:
        """Those in tensors of a device too, which is waited for."""
        return hyperparameters.values_of(self._groups(), on_device=True)

    def _compare(self, step: int) -> None:
        self._compare_shown(Shown(self._before, self._values()), DIFFERENT, step)

    def _compare_shown(self, mine: Shown, words: str, step: int) -> None:
        told = self._gather([self._newcomer, mine.before, mine.now])
        newcomers = {rank for rank, (newcomer, _, _) in enumerate(told) if newcomer}
        shown = [Shown(before, now) for _, before, now in told]
        what = hyperparameters.differing(shown, newcomers)
        if what:
            some = some_of(what, between="; ")
            text = words.format(step=step, what=some, version=self._version)
            raise DifferenceError(text + hyperparameters.remedy(self._adapter.remedies))
        self._common = hyperparameters.in_common(shown)

    def _ask(self, step: int, values: dict[str, Any]) -> None:
        common = {name: value for name, value in values.items() if name in self._common}
        numbers = torch.tensor([hyperparameters.checksum(common)], dtype=torch.int64)
        self._asked = step, exchange.Alike(numbers, self._whole()), Shown(self._before, values)

    # ---- weights ----------------------------------------------------------------------------------------------------

    def _ask_weights(self, step: int) -> None:
        for replicas in self._adapter.replicas():
            if len(replicas.ranks) > 1:
                sums = checksums.sums([tensor for _, tensor in replicas.tensors])
                self._asked_weights.append((step, replicas, exchange.Alike(sums, replicas.group)))

    def _compare_weights(self, replicated: Sequence[Replicas], step: int) -> None:
        for replicas in replicated:
            if len(replicas.ranks) < 2:
                continue
            sums = checksums.sums([tensor for _, tensor in replicas.tensors]).tolist()
            told = self._gather([self._newcomer, sums], replicas.group)
            if any(len(others) != len(sums) for _, others in told):
                raise DifferenceError(f"the ranks {listed(replicas.ranks)} have different numbers of weights")
            newcomers = {rank for rank, (newcomer, _) in zip(replicas.ranks, told, strict=True) if newcomer}
            what = []
            for place, (name, _) in enumerate(replicas.tensors):
                odd = _odd([others[place] for _, others in told])
                if odd:
                    what.append(f"{name} differs on {listed((replicas.ranks[i] for i in odd), newcomers)}")
            if what:
                some = some_of(what, between="; ", more="more tensors")
                kind, words = (UnsupportedError, FROM_THE_START) if step == 1 else (DifferenceError, WEIGHTS)
                holders = f"of what {listed(replicas.ranks)} hold, "
                raise kind(words.format(what=holders + some, step=step))

    # ---- telling each other -----------------------------------------------------------------------------------------

    def _gather(self, value: list[Any], group: Any = None) -> list[list[Any]]:
        try:
            return [codec.decode(data) for data in exchange.gather_bytes(codec.encode(value), group or self._whole())]
        except exchange.Garbled:
            pass
        self._fence.wait_halted(self._verdict_timeout_s)
        self._fence.check()
        raise DifferenceError("the ranks could not be compared: a collective brought garbled bytes, and no rank died")


def _odd(values: Sequence[int]) -> list[int]:
    """Places of the values that are not the most frequent one (the first of these)."""
    if len(set(values)) == 1:
        return []
    usual = max(values, key=lambda value: (values.count(value), -values.index(value)))
    return [place for place, value in enumerate(values) if value != usual]
