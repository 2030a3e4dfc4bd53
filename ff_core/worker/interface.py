"""What a framework's adapter asks of the worker that it runs in.

`ff_core.worker.session.Session` is the real one. Tests have one in memory, and one contract test runs over both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.adapter import TrainerAdapter
    from ff_core.errors import FailoverInterrupt


class AdapterSession(Protocol):
    """One rank's session, as adapters and their loops see it. All of it belongs to the training thread.

    A version is a state of the rank's tensors, counted by optimizer steps: version v is what the v-th step made.
    Calls that wait may raise FailoverInterrupt: another rank has died. Then leave the `except` block (its traceback
    keeps the dead groups alive), call recover(), and continue from the version that it returns.
    """

    # ---- what is so -------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Global rank."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def may_restart(self) -> bool:
        """The whole script is started again if a rank cannot be replaced (--max-restarts)."""

    @property
    def config(self) -> FailoverConfig:
        """The job's settings; final once training has started."""

    @property
    def epoch(self) -> int:
        """Membership epoch: 0 at first, higher after every failover."""

    @property
    def is_newcomer(self) -> bool:
        """This process takes over a dead rank and has not joined the others yet. start_training() ends that."""

    @property
    def training(self) -> bool:
        """This rank is protected: start_training() is done."""

    @property
    def version(self) -> int:
        """Version of the live tensors; -1 before training has started."""

    @property
    def committed_version(self) -> int:
        """Newest version that no single failure can take away; -1 if there is none yet in this epoch."""

    @property
    def oldest_needed(self) -> int:
        """The job never goes back behind this version: the batches of iterations up to it can be forgotten."""

    # ---- until training starts --------------------------------------------------------------------------------------

    def configure(self, config: FailoverConfig) -> None:
        """The job's own settings (of the "ff_failover" block or of --ff-* flags), before start_training()."""

    def attach(self, adapter: TrainerAdapter) -> None:
        """Model and optimizer are complete; from now on `adapter` speaks for them.

        Raises FailoverError for a second adapter.
        """

    def saved_scalars(self) -> dict[str, Any]:
        """In a newcomer: the adapter's scalars of the version that it will probably begin from. Waits for them.

        Another failure may still move that version: what the adapter's load_scalars() gets is final. Raises
        FailoverError in a process that is not a newcomer.
        """

    def call_in_spares(self, function: str, *arguments: Any) -> None:
        """Have spares call `function` ("package.module:function") ahead of time. arguments: plain values."""

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called when the script has ended well. What it raises ends the process."""

    def passes_over(self) -> None:
        """In a newcomer: its script is where training began, and passes over what is done. Until start_training() its
        collectives complete by themselves, whatever the dead rank's were."""

    def before_first_batch(self, asks: bool = True) -> None:
        """The script asks for what may be its first batch, where a replacement would take over. What it has in its
        variables by then was made on the way to training.  asks: False if it has turned out that it was not."""

    def start_training(self) -> int:
        """Begin to protect: version 0 is copied. In a newcomer: take the dead rank's place. Returns the version.

        Comes before the first iteration, after attach(); later calls only return the version. A newcomer has used none
        of its groups until here. Raises FailoverError before attach().
        """

    # ---- an iteration -----------------------------------------------------------------------------------------------

    def given(self, values: Any) -> None:
        """The framework is called with `values` (tensors, arrays, plain values, nested) in the iteration that runs.

        After a failure the iteration must be given the same: its step() raises FailoverError if it was not. What comes
        between step() and seal() is not looked at.
        """

    def loss(self, value: torch.Tensor) -> None:
        """A backward pass of the iteration that runs begins from `value`, a loss. Compared as what was given."""

    def given_again(self) -> None:
        """After recover(): the script itself will call the framework again, for all that followed the live version.

        Not for calls that the adapter makes again with the values that it has kept.
        """

    def step(self) -> AbstractContextManager[None]:
        """Around the inner optimizer step, which is the only place where the tensors change.

        Waits until the older copy may be overwritten; afterwards the next version is being copied. Raises
        FailoverError for a second step without seal() between.
        """

    def seal(self) -> None:
        """The iteration that made the live version is complete, and its scalars are taken. Again: does nothing."""

    def check(self) -> None:
        """Raise FailoverInterrupt if the job has been halted."""

    def inject(self, at: str, iteration: int | None = None) -> None:
        """Training has reached the point `at` ("forward", "backward", "step", "after-step"): a fault is due here?

        iteration: the running one by default.
        """

    def mark(self) -> None:
        """A loop that is not the script's first begins: a version of its own for that. Waits until every rank has
        committed it: before, a death takes everybody back to the end of the loop before. May raise FailoverInterrupt;
        not any more once the version is sealed."""

    def persisted(self, path: str, version: int) -> None:
        """A checkpoint of `version` is on disk at `path`. A loss that cannot be recovered will name it."""

    # ---- failure and end --------------------------------------------------------------------------------------------

    def recover(self, interrupt: FailoverInterrupt) -> int:
        """In a survivor: go back to the version that all ranks agree on, and return it. Waits for the replacement.

        `interrupt` carries no traceback any more. Raises FailoverError before start_training().
        """

    def script_went_on(self) -> None:
        """After recover(): a script that ran on by itself is about to repeat an iteration, at a place at which nobody
        can put its variables back. Raises DifferenceError if numbers or texts are not what they were."""

    def script_again(self) -> None:
        """After recover(): a script that went on has come to where the live version was sealed, and runs on from there
        anew. Its variables become what they were. Raises DifferenceError if they cannot."""

    def left(self, version: int, *, begins: bool = False) -> None:
        """A failover would take this rank to where it cannot go on, because the script has left its loop other than at
        its end, in the iteration that makes `version`. All processes are given up, and replacements do that iteration
        again. So it does not return.

        begins: the rank is to begin with that version. Returns if it comes from a disk: an earlier job had left its
        loop there, and this one goes on.
        """

    def finish(self, *, again: bool = False) -> None:
        """The loop is over on this rank: seal, then wait until the last version of every rank is committed.

        again: a newcomer that joins with that version finds that this loop is over, and calls finish() itself. Then a
        death behind the loop can take everybody back to its end. Does nothing before start_training(). May raise
        FailoverInterrupt: then there is more to train.
        """
