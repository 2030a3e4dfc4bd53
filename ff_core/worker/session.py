"""A worker's session, and the order in which things happen in it. `current()` is what a framework's hooks ask for.

    boot                    the agent has said which rank this is; from now on a halt is answered   (boot.boot)
    torch is imported       every group made from now on can be replaced                (boot.on_torch_distributed)
    session = current()     None in a process that `fftrain run` did not start
    session.configure(...)  the job's own settings
    session.attach(adapter) model and optimizer are complete
    session.start_training()   version 0 is copied; a newcomer is restored here. From now on there is a `Training`
      with session.step():     around the inner optimizer step
      session.seal()           when the loop asks for more
      except FailoverInterrupt: ...  session.recover(interrupt)
    session.finish()        the loop is over
    script_ended, close     the script is over                                          (boot.shutdown)

The training thread calls all of it, but for `halt`, which is the watchdog's (the link's thread), and
`collective_begins`, which any thread may call. States and invariants: docs/protocol.md, sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from ff_core.config.settings import ALL_FIELDS, LAUNCH_FIELDS, SCRIPT, Settings
from ff_core.contract.adapter import Held
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.state import covered, found, switched, variables
from ff_core.state.razor import Plan, make_plan
from ff_core.worker import frozen, garbage, scalars
from ff_core.worker.engine import open_engine
from ff_core.worker.parts import WorkerParts
from ff_core.worker.training import Training
from ff_core.worker.verdicts import Verdicts

if TYPE_CHECKING:
    import torch

    from ff_core.comm import GroupRegistry
    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.adapter import TrainerAdapter
    from ff_core.contract.messages import Message
    from ff_core.worker.collective import FollowedCollective

_current: Session | None = None


def current() -> Session | None:
    """This process's session, or None if `fftrain run` did not start it."""
    return _current


def set_current(session: Session | None) -> None:
    """Called by `ff_core.worker.boot.boot` only."""
    global _current
    _current = session


class Session:
    """One worker, from its boot to the end of the script. Adapters see it as an `AdapterSession`, documented there.
    is_replacement: this process took over a dead rank, at any time.  until_joined: what lasts until it has joined.
    registry: the process's swappable groups; None until torch.distributed is imported.
    early: a newcomer's copy engine until training has it. arena_fd: of what the dead rank left; becomes ours.
    """

    def __init__(self, parts: WorkerParts, role: Message, arena_fd: int | None = None) -> None:
        self.parts = parts
        self.may_restart = parts.may_restart
        self.rank, self.world_size = parts.rank, parts.world_size
        self._settings = Settings.from_wire(role["job"]["config"], secret=parts.secret.decode())
        self.config = self._settings.config
        self.is_replacement: bool = role["newcomer"]
        self.registry: GroupRegistry | None = None
        self.early = open_engine([arena_fd], parts, self.config) if arena_fd is not None else None
        self.until_joined = ExitStack()
        self.adapter: TrainerAdapter | None = None
        self._training: Training | None = None
        self._verdicts = Verdicts(parts)
        self._preload_calls: list[list[Any]] = [["ff_core.worker.script:compile_ahead", [role["entrypoint"]]]]
        self._at_end: list[Callable[[], None]] = []

    # ---- what is so -------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Membership epoch; +1 per failover."""
        return self.parts.fence.epoch

    @property
    def is_newcomer(self) -> bool:
        """A replacement that has not joined yet."""
        return self.is_replacement and (self._training is None or not self._training.joined)

    @property
    def training(self) -> bool:
        """start_training() is done."""
        return self._training is not None and not self.is_newcomer

    @property
    def version(self) -> int:
        """Finished inner steps of the live tensors; -1 before training has started."""
        return self.parts.fence.version

    @property
    def committed_version(self) -> int:
        """W: the newest version safe everywhere, -1 if none yet in this epoch."""
        return self._training.replicator.committed_version() if self._training is not None else -1

    @property
    def oldest_needed(self) -> int:
        """No verdict goes back behind this version."""
        return self._training.oldest_needed if self._training is not None else -1

    @property
    def groups(self) -> GroupRegistry:
        """`registry`, for who cannot go on without. Raises FailoverError before torch.distributed is imported."""
        if self.registry is None:
            raise FailoverError("torch.distributed has not been imported yet: there are no groups")
        return self.registry

    # ---- until training starts --------------------------------------------------------------------------------------

    def configure(self, config: FailoverConfig) -> None:
        """What the script gives to its framework, before start_training(). Raises ConfigError for a field that comes
        too late, or that the launcher was given with another value."""
        closed = ALL_FIELDS if self.is_newcomer else LAUNCH_FIELDS
        self._settings = self._settings.joined(Settings.given(config, SCRIPT), closed)
        self.config = self._settings.config

    def attach(self, adapter: TrainerAdapter) -> None:
        """From now on `adapter` speaks for the framework's engine. Raises FailoverError for a second one."""
        if self.adapter is not None and self.adapter is not adapter:
            raise FailoverError("a second engine was made in this process: FFTrainer protects one engine per process")
        self.adapter = adapter

    def saved_scalars(self) -> dict[str, Any]:
        """In a newcomer: the adapter's scalars of the version it will probably begin from."""
        if not self.is_newcomer:
            raise FailoverError("saved_scalars() in a process that is not a newcomer")
        return dict(self._verdicts.peek(self.config)["adapter"])

    def call_in_spares(self, function: str, *arguments: Any) -> None:
        """Have spares call `function` ("package.module:function") ahead of time."""
        self._preload_calls.append([function, list(arguments)])

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called when the script has ended well: for a trainer whose loop does not say so."""
        self._at_end.append(callback)

    def passes_over(self) -> None:
        """See AdapterSession."""
        self.groups.journal.passed()

    def start_training(self) -> int:
        """Begin to protect, or take the dead rank's place. Idempotent. Returns the version of the live state."""
        if not self.training:
            if (adapter := self.adapter) is None:
                raise FailoverError("start_training() before attach(): no engine has been made yet")
            with garbage.put_off():
                plan = make_plan(adapter.tensors())
            replicas = [tensor for held in adapter.replicas() for _, tensor in held.tensors]
            journal = self.groups.freeze_journal([*(spec.tensor for spec in plan.specs), *replicas])
            covered.trains(adapter, [*(spec.tensor for spec in plan.specs), *replicas])
            if self.is_newcomer:
                self.until_joined.close()
                variables.of_process.begin(self._verdicts.peek(self.config)["variables"]["functions"])
                first = self._verdicts.next(newcomer=True)
                self._open(adapter, plan, first.fds).join(first)
                found.begin()
                switched.begin()
            else:
                self._begin(adapter, plan, journal)
        return self.version

    def before_first_batch(self, asks: bool = True) -> None:
        """See AdapterSession."""
        if self.adapter is not None and not (self.training or self.is_newcomer):
            variables.of_process.asked(self.adapter if asks else None)

    def _begin(self, adapter: TrainerAdapter, plan: Plan, journal: bytes) -> None:
        refuses = adapter.remedies if self.config.unsaved_variables == "refuse" else None
        variables.of_process.begin(after_asked=not adapter.repeats_script, refuses=refuses)
        found.begin()
        switched.begin()
        room = found.expected_bytes(spec.tensor for spec in plan.specs) + variables.of_process.expected_bytes()
        blob, peers = scalars.take(adapter, self.groups).bytes(), adapter.peers()
        frozen.keep(self.parts, self.config, plan, peers)
        self.parts.link.send(
            "protect", rank=self.rank, sent_bytes=plan.sent_bytes, local_bytes=plan.local_bytes,
            blob_capacity=max(2 * len(blob), len(blob) + (1 << 20)) + room, journal_bytes=len(journal),
            has_constant=plan.totals[Held.CONSTANT] > 0,  # in no slot: only a living process can give it
            on_device=plan.on_device, settings=self._settings.to_wire(), **({} if peers is None else {"peers": peers}),
        )  # fmt: skip
        answer, fds = self.parts.inbox.take("arena", lambda m: True, self.check)
        self._open(adapter, plan, fds).begin(answer, journal, blob)

    def _open(self, adapter: TrainerAdapter, plan: Plan, fds: list[int]) -> Training:
        """fds: the arena's, which the agent sent; become ours."""
        engine, self.early = open_engine(fds, self.parts, self.config, self.early), None
        given = self.parts, self._verdicts, self.config, self.groups, adapter, plan, engine, self._preload_calls
        self._training = training = Training(*given)
        return training

    # ---- an iteration -----------------------------------------------------------------------------------------------

    def _started(self, asked: str) -> Training:
        if self._training is None or not self.training:
            raise FailoverError(f"{asked} before start_training()")
        return self._training

    def given(self, values: Any) -> None:
        """The framework is called with `values` in the iteration that runs: noted, and compared after a failure."""
        self._started("given()").given(values)

    def loss(self, value: torch.Tensor) -> None:
        """A backward pass begins: its loss is noted, and compared after a failure."""
        self._started("loss()").loss(value)

    def given_again(self) -> None:
        """The script will give again what followed the live version."""
        self._started("given_again()").inputs.again(self.version)

    def step(self) -> AbstractContextManager[None]:
        """Around the inner optimizer step: waits at the commit gate before, starts the next version's copy after."""
        return self._started("step()").step()

    def seal(self) -> None:
        """The iteration that made the live version is complete. Nothing if it is sealed already."""
        self._started("seal()").seal()

    def mark(self) -> None:
        """See AdapterSession."""
        self._started("mark()").mark()

    def check(self) -> None:
        """Raise FailoverInterrupt if the job has been halted."""
        self.parts.fence.check()
        if self._training is not None:
            self._training.settle()

    def inject(self, at: str, iteration: int | None = None) -> None:
        """Training has reached the point `at` of the running iteration (or of `iteration`): a due fault happens."""
        if iteration is None:
            iteration = self.version if at == "after-step" else self.version + 1
        if self._training is not None:
            self._training.settle()
        self.parts.faults.point(at, iteration)

    def persisted(self, path: str, version: int) -> None:
        """A checkpoint of `version` was saved to disk at `path`; an unrecoverable loss will name it."""
        self.parts.link.send("persisted", rank=self.rank, path=str(path), version=version)

    def collective_begins(self) -> FollowedCollective | None:
        """See CommHost. Any thread."""
        training = self._training
        return None if training is None else training.replicator.collective_begins()

    # ---- failure ----------------------------------------------------------------------------------------------------

    def halt(self, epoch: int) -> None:
        """Watchdog thread: stop everything that touches state, and say what the live tensors hold."""
        fence, training = self.parts.fence, self._training
        if training is not None:
            training.inputs.halting(epoch)
        version, sealed = fence.halt(epoch, lambda: self._abort_groups(epoch))
        # Asked before the groups are aborted: a step that waits on the device for a collective will never be whole.
        if version >= 0 and training is not None and not training.replicator.step_ended(version):
            version, sealed = -1, False
            fence.never_whole()  # a second halt cannot ask again: the abort ends the wait, the cancel forgets it
        if version >= 0 and training is not None and not training.can_supply(version):
            version, sealed = -1, False
        self._abort_groups(epoch)
        if training is not None:
            training.replicator.wait_idle()  # an abort that frees nothing shows here, within the halt's time
            training.replicator.cancel()
        self.parts.link.send("halted", epoch=epoch, version=-1 if self.is_newcomer else version, sealed=sealed)
        self.parts.inbox.poke()

    def _abort_groups(self, epoch: int) -> None:
        if self.registry is not None:
            self.registry.halt(epoch)

    def verdict_timeout_s(self) -> float:
        """How long an operation that failed waits for a halt: 0 where nothing would be recovered. Any thread."""
        return self.config.verdict_timeout_s if self.training or self.is_newcomer else 0.0

    def recover(self, interrupt: FailoverInterrupt) -> int:
        """In a survivor, outside any `except` that still holds the traceback: back to a common version. Returns v*."""
        return self._started("recover()").recover()

    def script_went_on(self) -> None:
        """See AdapterSession."""
        self._started("script_went_on()").script_went_on()

    def script_again(self) -> None:
        """See AdapterSession."""
        self._started("script_again()").script_again()

    # ---- end --------------------------------------------------------------------------------------------------------

    def finish(self, *, again: bool = False) -> None:
        """See AdapterSession."""
        if self.training:
            self._started("finish()").finish(again=again)

    def left(self, version: int, *, begins: bool = False) -> None:
        """See AdapterSession."""
        self._verdicts.left(version, begins)

    def script_ended(self) -> None:
        """The script has ended well: see at_end()."""
        for callback in self._at_end:
            callback()

    def close(self) -> None:
        """The process ends: join the engine's threads and the one that may still connect to the store."""
        if self.registry is not None:
            self.registry.close()
        if self._training is not None:
            self._training.replicator.close()
