"""The protection of this process's engine: the engine itself, and the two loops that may drive it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.worker import session
from ff_core.worker.guard import Guard
from ff_deepspeed import client, preload, scalars, second, support
from ff_deepspeed.engine import ProtectedEngine
from ff_deepspeed.loop import Loop
from ff_deepspeed.pipe import state as pipe
from ff_deepspeed.pipe.script import PipelineScript
from ff_deepspeed.unmodified import Unmodified

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig
    from ff_core.worker.interface import AdapterSession

log = logging.getLogger("ff_deepspeed")


class Protection(ProtectedEngine):
    """A protected engine with its loops. Until training starts it is not known which of them the script uses."""

    def __init__(self, engine: Any, session: AdapterSession) -> None:
        super().__init__(engine, session)
        self.pipeline = PipelineScript(self) if pipe.is_pipeline(engine) else None
        self.unmodified = self.pipeline or Unmodified(self)
        self.loop = Loop(self, self.unmodified.check_unused)
        self.adapter.script = self.loop

    def load_checkpoint(self, original: Callable[..., Any], args: Any, kwargs: Any) -> client.Answer:
        """engine.load_checkpoint(...): in a newcomer answered from memory, else DeepSpeed's own."""
        if not self.session.is_newcomer:
            path, state = original(self.engine, *args, **kwargs)
            self.client.loaded(self.engine.global_steps, path, state)
            return path, state
        saved = self.session.saved_scalars()
        counters = dict(saved["trainer"]["engine"])
        data = saved["data"]
        # The exact loop, and a library's, find their way from where the job began; before the first iteration that is
        # the place to be.
        is_led = "call" in data or (saved["client"]["led"] and not data.get("start"))
        first = client.first_answer(saved["client"]) if is_led or data.get("start") else None
        if is_led and first is None:
            return original(self.engine, *args, **kwargs)
        if first is not None:
            counters = {"global_steps": first[0]}
            answer = first[1]
        else:
            directory = str(kwargs.get("load_dir", args[0] if args else ""))
            step = counters["global_steps"]
            answer = client.answer(saved["client"], step, f"{directory}/global_step{step}")
        scalars.set_counters(self.engine, counters)
        if not is_led:
            self.unmodified.answered(data)  # last: random states are put back here
        log.info("load_checkpoint() was answered from memory: %s", answer[0])
        return answer

    def go_on_from_memory(self) -> None:
        """In a newcomer whose loop is a library's, instead of load_checkpoint(): it is at the restored version."""
        saved = self.session.saved_scalars()
        scalars.set_counters(self.engine, dict(saved["trainer"]["engine"]))
        self.unmodified.answered(saved["data"])


guard: Guard[Protection] = Guard(
    log,
    asked='"ff_failover" is enabled',
    unasked='the DeepSpeed configuration has no enabled "ff_failover" block: this engine is not protected',
)


# Engines that were made before the protected one: trained ones, and others with partitioned parameters.
_unprotected: list[weakref.ReferenceType[Any]] = []


def protect(engine: Any, config: FailoverConfig | None) -> None:
    """After an engine is complete: protect it if its "ff_failover" block says so. Raises UnsupportedError."""
    if not second.is_trained(engine) and not second.is_partitioned(engine) and not pipe.is_pipeline(engine):
        return  # it has nothing that changes
    if guard.current() is not None:
        second.include(engine)
        return
    if not second.is_trained(engine):
        if session.current() is not None:
            _unprotected.append(weakref.ref(engine))
        return
    if config is None or not config.enabled:
        guard.not_asked()
        if session.current() is not None:
            _unprotected.append(weakref.ref(engine))
        return
    support.check_engine(engine)
    mine = guard.session()
    if mine is not None:
        mine.configure(config)
        preload.publish(mine)
        guard.hold(Protection(engine, mine), by=engine)
        for earlier in (ref() for ref in _unprotected):
            if earlier is not None:
                second.include(earlier)
        _unprotected.clear()


def is_newcomer() -> bool:
    """Whether this process takes over a dead rank and has not joined yet."""
    mine = session.current()
    return mine is not None and mine.is_newcomer


def of(engine: Any) -> Protection | None:
    """The protection of `engine`, None if it has none."""
    return guard.of(engine)


def current() -> Protection | None:
    """The protection of this process's protected engine, None if there is none (any more)."""
    return guard.current()
