"""What ties Megatron's training in this process to the failover runtime."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ff_core.config import flags
from ff_core.errors import FailoverError, UnsupportedError
from ff_core.worker import session as runtime
from ff_megatron import preload, scalars, support
from ff_megatron.adapter import MegatronAdapter
from ff_megatron.data import Data
from ff_megatron.loop import Loop

if TYPE_CHECKING:
    from ff_core.worker.session import Failover

log = logging.getLogger("ff_megatron")

UNPROTECTED = (
    "THIS JOB IS NOT PROTECTED: --ff-failover is given, but the job was not started by `fftrain run`. "
    "It trains as without FFTrainer; start it with `fftrain run ...` to survive failures."
)


class Protection:
    """The protected training of this process. training: the module megatron.training.training."""

    def __init__(self, training: ModuleType, failover: Failover) -> None:
        self.training, self.failover = training, failover
        self.args = training.get_args()
        self.data = Data()
        self.loop = Loop(failover, self.args, self.data)

    def load_checkpoint(self, original: Callable[[], Any]) -> Any:
        """load_checkpoint(): in a newcomer answered from memory, iteration and operation count; else Megatron's own."""
        registry = self.failover.registry
        assert registry is not None
        if self.failover.is_newcomer:
            self._go_to_saved()
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

    def _go_to_saved(self) -> dict[str, Any]:
        saved = self.failover.saved_scalars()
        scalars.set_counters(self.args, saved["trainer"]["counters"])
        self.loop.set_place(saved["place"])
        return saved

    def data_iterators(self, original: Callable[[], Any]) -> Any:
        """build_train_valid_test_data_iterators(): in a newcomer from where the dead rank's data stood."""
        positions: list[int] | None = self._go_to_saved()["data"] if self.failover.is_newcomer else None
        built = original()
        self.data.track(built, positions)
        return built

    def train(self, original: Callable[..., Any], given: dict[str, Any], call: Callable[[], Any]) -> Any:
        """train(): given are its arguments by name, `call` makes the call."""
        model, optimizer, scheduler = given["model"], given["optimizer"], given["opt_param_scheduler"]
        support.check_training(model, optimizer, scheduler)
        adapter = MegatronAdapter(
            model, optimizer, scheduler, given["config"], self.args, self.training.get_timers(), self.data, self.loop
        )
        self.failover.attach(adapter)
        optimizer.step = functools.partial(self._step, optimizer.step)
        return self.loop.train(call, original.__code__)

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """optimizer.step(), fenced: afterwards the tensors hold the next version, also if the step was skipped."""
        with self.failover.step():
            self.failover.inject("step")
            result = original(*args, **kwargs)
        self.failover.inject("after-step")
        return result

    def saved(self, iteration: int) -> None:
        """A checkpoint of `iteration` is on disk."""
        self.failover.persisted(f"{self.args.save}/iter_{iteration:07d}", self.failover.version)


_protection: Protection | None = None


def current() -> Protection | None:
    """This process's protected training, None if there is none."""
    return _protection


def begin(training: ModuleType) -> None:
    """Arguments are parsed and nothing is built yet: protect the training if they say so. Raises UnsupportedError."""
    global _protection
    failover = runtime.current()
    config = flags.from_namespace(training.get_args())
    if config is None:
        if failover is not None:
            log.warning("the script has no %s: this training is not protected", flags.SWITCH)
        return
    support.check_arguments(training.get_args(), bool(config.persist.period))
    if failover is None:
        log.warning("%s", UNPROTECTED)
        return
    if _protection is not None:
        raise FailoverError("pretrain() was called a second time: one training per process can be protected")
    failover.configure(config)
    preload.publish(failover)
    _protection = Protection(training, failover)
