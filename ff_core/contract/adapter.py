"""The contract between ff_core and a training framework.

An adapter says where its framework keeps state, who else holds it, and how to put an interrupted iteration back.
It holds no protocol, no threads and no sockets. `ff_core.worker` calls it, always from the training thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class Held(Enum):
    """Who else can give a tensor back."""

    UNIQUE = "unique"  # nobody: copied to the own slot and to every replica
    REPLICATED = "replicated"  # every other rank of `over`: own slot only, newcomers get it by broadcast
    DERIVED = "derived"  # recomputed from `source` by rebuild(): never copied
    CONSTANT = "constant"  # never changes after start, same on all ranks: never copied, newcomers get it by broadcast


class TensorSpec(NamedTuple):
    """One tensor of a rank's state.

    name: unique within the rank, the same in survivor and newcomer.  tensor: the live tensor itself; restored in place.
    held: see `Held`.  over: for REPLICATED and CONSTANT, words for the group ("data-parallel", 4 ranks).
    source: for DERIVED, the names' prefix it is recomputed from.
    UNIQUE and REPLICATED tensors change only inside the inner optimizer step (what forward changes belongs into
    scalars()).
    """

    name: str
    tensor: torch.Tensor
    held: Held
    over: str = ""
    source: str = ""


class Replicas(NamedTuple):
    """Weights of which some ranks hold the same bits.

    group: of torch.distributed, this rank in it; None: all ranks.  ranks: global ranks of the group, in its order.
    tensors: (name, live tensor), in the same order on each of these ranks.
    """

    group: Any
    ranks: list[int]
    tensors: list[tuple[str, torch.Tensor]]


class Remedies(NamedTuple):
    """What errors advise, in the framework's own words.

    counter: what tells a script within an iteration how many there have been.  save: how it has state of its own saved.
    batches: what batches have to come from.  unsaved: how to train though variables are lost, "set ... to ...".
    inside: where collectives of training belong.  edits: a sentence for who writes weights outside of the optimizer
    step.
    """

    counter: str
    save: str
    batches: str
    unsaved: str
    inside: str
    edits: str


class TrainerAdapter(Protocol):
    """What ff_core needs to know about one rank's trainer."""

    name: str  # "deepspeed", "megatron", ...
    remedies: Remedies

    @property
    def repeats_script(self) -> bool:
        """In a survivor the script's own code runs again after a failure, from the begin of an iteration."""

    def tensors(self) -> list[TensorSpec]:
        """All persistent tensors. Called once, at start of training, when every tensor exists (moments included)."""

    def only_stepped(self) -> Iterable[tuple[str, torch.Tensor]]:
        """(name, live tensor) of what only the optimizer step may write: the model's parameters, by the user's names.

        In the same order each time. A write outside of the step ends the job (`ff_core.state.edits`). What the
        framework itself writes at other times is left out.
        """

    def replicas(self) -> Sequence[Replicas]:
        """The model's weights, derived ones too, by who else has them. Asked right before an optimizer step.

        Buffers are left out: they may be a rank's own.
        """

    def hyperparameters(self) -> Sequence[Mapping[str, Any]]:
        """The live parameter groups of the optimizers that step, in an order that all ranks share. Each has "params",
        which is not looked at."""

    def peers(self) -> list[int] | None:
        """Global ranks that hold the same REPLICATED and CONSTANT tensors as this one, itself included; None: all.

        Called once, after tensors(). The same on each of these ranks.
        """

    def scalars(self) -> dict[str, Any]:
        """Everything else that an iteration changes: counters, scheduler, scaler, RNG, data position, forward-changed
        buffers.

        Called at the seal. Plain values, NumPy arrays, torch tensors, nested dict/list/tuple: see
        `ff_core.state.codec`.
        """

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Put `scalars()` of the restored version back. Called last, after rebuild(); RNG must be set last of all."""

    def drop_iteration(self) -> None:
        """Forget the half-done iteration: gradients, buckets, flags and *work handles*. No collectives (groups are
        halted)."""

    def rebuild(self, source_rank: int | None, newcomers: list[int], restored: list[int]) -> None:
        """Recompute DERIVED tensors and broadcast REPLICATED and CONSTANT ones to newcomers.

        Called on every rank, after unique tensors are restored and groups work again; collectives are allowed and
        must be the same on every rank.

        source_rank: the lowest global rank whose state is complete; None if own slots held all.
        newcomers: ranks with incomplete state. If peers() is a subset of the ranks and one of them is a newcomer, the
        lowest peer that is not a newcomer is the source.
        restored: ranks that took this version from a slot, all newcomers among them: their DERIVED tensors are stale.
        The others kept their live tensors, DERIVED ones too.
        """
