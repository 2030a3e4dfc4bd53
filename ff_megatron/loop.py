"""From a halt back into `train()`: survivors leave it and enter it again, newcomers enter it for the first time.

    pretrain: ... build data iterators -> train() -> final save, final evaluations -> end

Both sides then issue the same collectives: the barriers of a first iteration, those of logging, of an evaluation or a
save. A version is sealed when the loop asks for the next iteration, after logging, evaluation and save of its own; so
an evaluation or a save that was interrupted is done again with its iteration.

What pretrain does after `train()` has returned cannot be entered again from outside. Its calls with collectives are
remembered instead, and made again in their order, once `train()` has been gone through again; then the interrupted call
is made once more and its caller notices nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverInterrupt, UnsupportedError, interrupted
from ff_megatron.begun_once import left_by

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession
    from ff_megatron.begun_once import BegunOnce
    from ff_megatron.data import Data
    from ff_megatron.saves import Saves

OPERATIONS = "num_floating_point_operations_so_far"


class Exit:
    """`train()` ended the process (--exit-interval and the like) with this code."""

    def __init__(self, code: Any) -> None:
        self.code = code


class Loop:
    """One protected training. args: Megatron's."""

    def __init__(self, session: AdapterSession, args: Any, data: Data, saves: Saves, once: BegunOnce) -> None:
        self._session, self._args, self._data, self._saves, self._once = session, args, data, saves, once
        self._train: Callable[[], Any] | None = None
        self._code: CodeType | None = None
        self._iteration = 0
        self._operations: float = 0
        self._exit: Exit | None = None
        self._calls: list[Callable[[], Any]] = []
        self._returned = False
        self._newcomer = False  # train() has not been entered yet, and others have
        self._busy = False  # inside train() or one of the calls: what they call in turn is theirs

    # ---- Place (see ff_megatron.adapter) ----------------------------------------------------------------------------

    def place(self) -> dict[str, Any]:
        exited = None if self._exit is None else {"code": self._exit.code}
        return {"iteration": self._iteration, "operations": self._operations, "exit": exited}

    def set_place(self, saved: dict[str, Any]) -> None:
        self._iteration, self._operations = saved["iteration"], saved["operations"]
        self._exit = None if saved["exit"] is None else Exit(saved["exit"]["code"])
        self._args.iteration = self._iteration
        self._args.num_floating_point_operations_so_far = self._operations

    # ---- what hooks call --------------------------------------------------------------------------------------------

    def train(self, original: Callable[[], Any], code: CodeType) -> Any:
        """`train(...)`; `original` makes the call, `code` is the function's. Returns what it returns."""
        if OPERATIONS not in (*code.co_varnames, *code.co_cellvars):
            raise UnsupportedError(f"this Megatron-LM's train() has no local variable {OPERATIONS}")
        self._train, self._code = original, code
        self._iteration = self._args.iteration
        self._operations = self._args.num_floating_point_operations_so_far
        self._newcomer = self._session.is_newcomer
        self._session.start_training()
        self._data.sealed(self._session.version, self._session.oldest_needed)
        result = self._attempt(self._again if self._newcomer else self._run_train)
        self._returned = True
        return result

    def next_iteration(self) -> None:
        """train() is about to make iteration args.curr_iteration + 1: the one before is complete."""
        self._once.first_step()
        self._iteration = self._args.curr_iteration
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        assert frame is not None, "train_step() was not called by train()"
        self._operations = frame.f_locals[OPERATIONS]
        del frame
        self._seal()

    def after(self, call: Callable[[], Any]) -> Any:
        """A call of pretrain's. Before and inside train() it is just made; afterwards it survives failures."""
        if not self._returned or self._busy:
            return call()
        self._calls.append(call)
        return self._attempt(call)

    def end(self) -> None:
        """pretrain is over: wait until nobody needs this rank any more."""
        if self._returned:
            self.after(self._session.finish)

    # ---- going on after a failure -----------------------------------------------------------------------------------

    def _attempt(self, call: Callable[[], Any]) -> Any:
        self._busy = True
        try:
            while True:
                result, epoch = interrupted(call)
                if epoch is None:
                    return result
                self._recover(epoch)
                call = self._again
        finally:
            self._busy = False

    def _recover(self, epoch: int) -> None:
        self._session.recover(FailoverInterrupt(epoch))
        self._session.given_again()
        if self._session.rank in (0, self._session.world_size - 1):
            print(
                f"fftrain: rank {self._session.rank} goes on after iteration {self._iteration}",
                file=sys.stderr,
                flush=True,
            )

    def _again(self) -> Any:
        self._saves.again(self._iteration)
        self._once.again(self._iteration, self._newcomer)
        self._newcomer = False
        result = self._run_train()
        for call in self._calls:
            result = call()
        return result

    def _run_train(self) -> Any:
        assert self._train is not None and self._code is not None
        if self._exit is None:
            try:
                result = self._train()
                if isinstance(result, tuple):
                    self._iteration, self._operations = result[0], result[1]
                return result
            except SystemExit as leaving:
                self._exit, self._iteration = Exit(leaving.code), self._args.curr_iteration + 1
            except FailoverInterrupt as leaving:
                self._once.leave(left_by(leaving.__traceback__, self._code))
                raise
        self._session.finish()
        raise SystemExit(self._exit.code)

    def _seal(self) -> None:
        self._session.seal()
        self._data.sealed(self._session.version, self._session.oldest_needed)
