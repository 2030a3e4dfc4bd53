"""A protected engine: what the two loops (`loop`, `unmodified`) and the hooks use of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_deepspeed.adapter import DeepSpeedAdapter
from ff_deepspeed.client import ClientState

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

log = logging.getLogger("ff_deepspeed")


class ProtectedEngine:
    """One engine and the session that protects it. Whose loop it is must set `adapter.script` before it starts."""

    def __init__(self, engine: Any, session: AdapterSession) -> None:
        self.engine = engine
        self.session = session
        self.started = False
        self.client = ClientState()
        self.adapter = DeepSpeedAdapter(engine, session.rank, weights_edited=session.config.weights_edited)
        self._failed: FailoverError | None = None
        self._micro_steps = 0  # when the version was made
        self._passes = False
        session.attach(self.adapter)

    def start(self) -> int:
        """Training starts here (or goes on, in a newcomer). Returns the version; idempotent."""
        self.check()
        version = self.session.start_training()
        self.started = True
        return version

    def pass_over(self) -> None:
        """In a newcomer: what its script does from here on, until it joins, was done by the dead rank in training."""
        self._passes = True
        self.session.passes_over()

    @property
    def passing(self) -> bool:
        """A newcomer passes over what was done: it must not write over what that has left."""
        return self._passes and self.session.is_newcomer

    def step(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """The engine's inner step, with a copy of the next version afterwards."""
        self.check()
        if not self.started:
            raise FailoverError(
                "engine.step() before any engine(...) in training mode: the step of an iteration that did not "
                "begin cannot be protected. Call the engine, `loss = engine(batch)`, not engine.module"
            )
        try:
            self.adapter.stepping()
        except UnsupportedError as error:
            raise self.fail(error) from None
        with self.session.step():
            self.session.inject("step")
            original(self.engine, *args, **kwargs)
            self.adapter.stepped()
        self._micro_steps = self.engine.micro_steps
        self.session.inject("after-step")

    def steps_since_version(self) -> int:
        """Calls of engine.step() after the one that made the newest version."""
        later: int = self.engine.micro_steps - self._micro_steps - 1  # it counts its micro-step when it returns
        return max(later, 0)

    def persist(self) -> None:
        """Save a checkpoint on disk if one is due at the version that just ended. Collective."""
        where = self.session.config.persist
        version = self.session.version
        if not where.period or version % where.period:
            return
        self.engine.save_checkpoint(where.directory, client_state=self.client.current())
        self.session.persisted(f"{where.directory}/global_step{self.engine.global_steps}", version)

    def fail(self, error: FailoverError) -> FailoverError:
        """This rank cannot go on. Remembers `error` for `check`, so that it cannot be lost; returns it to be raised."""
        log.critical("%s", error)
        self._failed = error
        return error

    def check(self) -> None:
        """Raise what `fail` remembered."""
        if self._failed is not None:
            raise self._failed
