"""What ties Megatron's training in this process to its session."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ff_core.config import flags
from ff_core.errors import UnsupportedError
from ff_core.state import covered, frames, loading, spaces
from ff_core.worker.guard import Guard
from ff_core.worker.hooks import wrap
from ff_megatron import preload, step, support
from ff_megatron.adapter import MegatronAdapter
from ff_megatron.arguments import OfArguments
from ff_megatron.begun_once import BegunOnce
from ff_megatron.data import Data
from ff_megatron.in_data import InData
from ff_megatron.loop import Loop
from ff_megatron.of_pretrain import OfPretrain
from ff_megatron.remedies import OF_PRETRAIN
from ff_megatron.saves import Saves
from ff_megatron.training_log import TrainingLog

if TYPE_CHECKING:
    from ff_core.worker.session import Session

log = logging.getLogger("ff_megatron")

IN_PROCESS = (
    "{line}: loading changes {what} in a process of the data loader, where nobody can save it. After a failure the "
    "processes of a replacement begin anew, and would load other data. Let the data set derive what it draws and "
    "counts from the item's number and a seed, or load in the training process: --num-workers 0. If it decides "
    "nothing, " + OF_PRETRAIN.unsaved
)


class Protection:
    """The protected training of this process. training: the module megatron.training.training."""

    def __init__(self, training: ModuleType, session: Session) -> None:
        self.training, self.session = training, session
        self.args = training.get_args()
        self._told: set[str] = set()
        session.groups.listener = InData()
        covered.itself(self.args)
        spaces.more.append(partial(OfArguments, self.args))
        self.data = Data(self._handed_out, self._changed)
        self.saves = Saves(training, session, self.args)
        self.once = BegunOnce(training, self.args)
        self.loop = Loop(session, self.args, self.data, self.saves, self.once)
        self.log = TrainingLog(training)
        self._state = OfPretrain(self.args, self.data, self.loop, self.log, self.saves, self.once)

    def _handed_out(self, batch: Any) -> None:
        if self.session.training:
            self.session.given(batch)

    def _changed(self, what: str) -> None:
        """Loading has changed `what` in a process of a data loader. Raises UnsupportedError."""
        if what == loading.MANY or what in self._told:
            return
        self._told.add(what)
        text = IN_PROCESS.format(what=what, line=frames.line())
        if self.session.config.unsaved_variables == "refuse":
            raise UnsupportedError(text)
        log.warning("%s", text)

    def feeds(self, iterator: Any) -> None:
        """See ff_megatron.micro_batches.Protected: `data_iterators` has made all of them."""

    def load_checkpoint(self, original: Callable[[], Any]) -> Any:
        """load_checkpoint(): in a newcomer answered from memory, iteration and operation count; else Megatron's own."""
        registry = self.session.groups
        if self.session.is_newcomer:
            self._state.go_to(self.session.saved_scalars())
            log.info("load_checkpoint() was answered from memory: iteration %d", self.args.iteration)
            return self.args.iteration, self.args.num_floating_point_operations_so_far
        before = len(registry.groups())
        with registry.journal.paused():  # a replacement does not come here
            loaded = original()
        if len(registry.groups()) != before:
            raise UnsupportedError(
                "load_checkpoint() made process groups, which a replacement would lack; use another --ckpt-format"
            )
        return loaded

    def data_iterators(self, original: Callable[[], Any]) -> Any:
        """build_train_valid_test_data_iterators(): in a newcomer from where the dead rank's data stood."""
        positions: list[int] | None = None
        if self.session.is_newcomer:
            saved = self._state.go_to(self.session.saved_scalars())
            positions = saved["data"]
            self.data.begin_at(saved["samples"])
        built = original()
        self.data.track(built, positions)
        return built

    def train(self, original: Callable[..., Any], given: dict[str, Any], call: Callable[[], Any]) -> Any:
        """train(): given are its arguments by name, `call` makes the call."""
        model, optimizer, scheduler = given["model"], given["optimizer"], given["opt_param_scheduler"]
        support.check_training(model, optimizer, scheduler)
        timers = self.training.get_timers()._timers
        self.saves.begin(given)
        of_loop = given["config"], timers.values(), self._state, OF_PRETRAIN
        self.session.attach(MegatronAdapter(model, optimizer, scheduler, *of_loop))
        self._device = next((p.device for chunk in model for p in chunk.parameters()), torch.device("cpu"))
        step.protect(optimizer, self.session)
        wrap(self.training, "train_step", self._train_step)
        return self.loop.train(call, inspect.unwrap(original).__code__)  # a script may have wrapped it

    def _train_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """train_step(), around what the script may have put in its place: that belongs to the iteration, too."""
        self.loop.next_iteration()
        return original(*args, **kwargs)

    def training_log(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """training_log()."""
        return self.log.iteration(original, bound, self._device)


guard: Guard[Protection] = Guard(
    log,
    asked=f"{flags.SWITCH} is given",
    unasked=f"the script has no {flags.SWITCH}: this training is not protected",
    second="pretrain() was called a second time: one training per process can be protected",
)


def current() -> Protection | None:
    """This process's protected training, None if there is none."""
    return guard.current()


def begin(training: ModuleType) -> None:
    """Arguments are parsed and nothing is built yet: protect the training if they say so. Raises UnsupportedError."""
    config = flags.from_namespace(training.get_args())
    if config is None:
        guard.not_asked()
        return
    support.check_arguments(training.get_args(), bool(config.persist.period), config.weights_edited)
    mine = guard.session()
    if mine is not None:
        mine.configure(config)
        preload.publish(mine)
        guard.hold(Protection(training, mine), by=training)
