"""What ties one DeepSpeed engine of this process to the failover runtime."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.worker import session as runtime
from ff_deepspeed import client, preload, scalars, support
from ff_deepspeed.adapter import DeepSpeedAdapter
from ff_deepspeed.client import ClientState
from ff_deepspeed.loop import Loop
from ff_deepspeed.unmodified import Unmodified

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig
    from ff_core.worker.session import Failover

log = logging.getLogger("ff_deepspeed")

UNPROTECTED = (
    'THIS JOB IS NOT PROTECTED: "ff_failover" is enabled, but the job was not started by `fftrain run`. '
    "It trains as without FFTrainer; start it with `fftrain run ...` to survive failures."
)


class Protection:
    """A protected engine: its adapter, its loop, and what may end its protection."""

    def __init__(self, engine: Any, failover: Failover) -> None:
        self.engine = engine
        self.failover = failover
        self.started = False
        self.client = ClientState()
        self.loop = Loop(self)
        self.unmodified = Unmodified(self)
        self.adapter = DeepSpeedAdapter(engine, failover.rank, self.loop)
        self._failed: FailoverError | None = None
        failover.attach(self.adapter)

    def start(self) -> int:
        """Training starts here (or goes on, in a newcomer). Returns the version; idempotent."""
        self.check()
        version: int = self.failover.start_training()
        self.started = True
        return version

    def step(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """The engine's inner step, fenced: afterwards the engine holds the next version."""
        self.check()
        if not self.started:
            raise FailoverError(
                "engine.step() before any engine(...) in training mode: the step of an iteration that did not "
                "begin cannot be protected"
            )
        with self.failover.step():
            self.failover.inject("step")
            original(self.engine, *args, **kwargs)
        self.failover.inject("after-step")

    def load_checkpoint(self, original: Callable[..., Any], args: Any, kwargs: Any) -> client.Answer:
        """engine.load_checkpoint(...): in a newcomer answered from memory, else DeepSpeed's own."""
        if not self.failover.is_newcomer:
            path, state = original(self.engine, *args, **kwargs)
            self.client.loaded(self.engine.global_steps, path, state)
            return path, state
        saved = self.failover.saved_scalars()
        counters = dict(saved["trainer"]["engine"])
        data = saved["data"]
        # The exact loop finds its way from where the job began; before the first iteration that is the place to be.
        first = client.first_answer(saved["client"]) if "call" in data or data.get("start") else None
        if "call" in data and first is None:
            return original(self.engine, *args, **kwargs)
        if first is not None:
            counters = {"global_steps": first[0]}
            answer = first[1]
        else:
            directory = str(kwargs.get("load_dir", args[0] if args else ""))
            step = counters["global_steps"]
            answer = client.answer(saved["client"], step, f"{directory}/global_step{step}")
        scalars.set_counters(self.engine, counters)
        if "call" not in data:
            self.unmodified.answered(data)  # last: random states are put back here
        log.info("load_checkpoint() was answered from memory: %s", answer[0])
        return answer

    def persist(self) -> None:
        """Save a checkpoint on disk if one is due at the version that just ended. Collective."""
        where = self.failover.config.persist
        version = self.failover.version
        if not where.period or version % where.period:
            return
        self.engine.save_checkpoint(where.directory, client_state=self.client.current())
        self.failover.persisted(f"{where.directory}/global_step{self.engine.global_steps}", version)

    def fail(self, error: FailoverError) -> FailoverError:
        """This rank cannot go on. Remembers `error` for `check`, so that it cannot be lost; returns it to be raised."""
        log.critical("%s", error)
        self._failed = error
        return error

    def check(self) -> None:
        if self._failed is not None:
            raise self._failed


_protection: weakref.ReferenceType[Protection] | None = None
_warned = False


def protect(engine: Any, config: FailoverConfig | None) -> None:
    """After an engine is complete: protect it if its "ff_failover" block says so. Raises UnsupportedError."""
    global _protection, _warned
    failover = runtime.current()
    if config is None or not config.enabled:
        if failover is not None:
            log.warning('the DeepSpeed configuration has no enabled "ff_failover" block: this engine is not protected')
        return
    if engine.optimizer is None:
        return  # an engine for inference: it has nothing that changes
    support.check_engine(engine)
    if failover is None:
        if not _warned:
            _warned = True
            log.warning("%s", UNPROTECTED)
        return
    if current() is not None:
        raise UnsupportedError(
            "this process has a protected engine already; one engine per process can be protected. Set "
            '"ff_failover": {"enabled": false} in the other configuration'
        )
    failover.configure(config)
    preload.publish(failover)
    engine._ff_protection = Protection(engine, failover)
    _protection = weakref.ref(engine._ff_protection)


def is_newcomer() -> bool:
    """Whether this process takes over a dead rank and has not joined yet."""
    failover = runtime.current()
    return failover is not None and failover.is_newcomer


def of(engine: Any) -> Protection | None:
    """The protection of `engine`, None if it has none."""
    return vars(engine).get("_ff_protection")


def current() -> Protection | None:
    """The protection of this process's protected engine, None if there is none (any more)."""
    return None if _protection is None else _protection()
