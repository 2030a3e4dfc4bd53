"""Megatron's checkpoints and failures: each is of one iteration, whole, or not named as the latest one.

A save that the loop has begun for an iteration behind the version that all go back to comes again by itself. One that
was under way in the background (`--async-save`) may be of an earlier iteration, whose state is gone: the dead rank had
its part of it. So whatever is under way is given up by all ranks, and the version that all go on from is saved instead:

    iteration 4: save begun     iteration 6: a rank dies     all go on from 5: 5 is saved, 4 is not there

All ranks agree on that before `train()` is entered again, in one collective: a replacement does not know what was under
way, and of two survivors one may know that a save is over and the other not yet. A folder that was begun and not
completed is removed, so that nobody counts it: `--non-persistent-save-interval` keeps the newest folder only.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ff_megatron import writers

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

_POLL_S = 0.05
_TIMER = "interval-time"
#: In train()'s checkpointing_context: what a save has found out for the next one, which asks fewer questions then. A
#: replacement has none of it and asks them all.
_FOUND_OUT = ("save_strategy", "load_strategy", "local_checkpoint_cache")


@dataclass(slots=True)
class _Save:
    """A save that this process does not know to be over. temporary: of --non-persistent-save-interval. number: in the
    queue of what is written in the background; None while save_checkpoint() runs."""

    iteration: int
    temporary: bool
    version: int
    number: int | None = None


class Saves:
    """Of one training. training: the module megatron.training.training.  args: Megatron's."""

    def __init__(self, training: ModuleType, session: AdapterSession, args: Any) -> None:
        self._training, self._session, self._args = training, session, args
        self._under_way: list[_Save] = []
        self._given: dict[str, Any] = {}

    def begin(self, given: dict[str, Any]) -> None:
        """`train()` is entered for the first time, with these arguments by name."""
        self._given = given

    # ---- what hooks call --------------------------------------------------------------------------------------------

    def save(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """`save_checkpoint(...)`. Returns what it returns."""
        given = bound.arguments
        save = _Save(given["iteration"], bool(given.get("non_persistent_ckpt")), self._session.version)
        self._under_way.append(save)
        result = original(*bound.args, **bound.kwargs)
        save.number = writers.newest() if getattr(self._args, "async_save", False) else -1
        self._note_complete()
        return result

    def finalize(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        """`maybe_finalize_async_save(...)`. One that waits asks again and again, so that a failure is noticed."""
        if bound.arguments["blocking"] and writers.waiting():
            self._training.print_rank_0("Unfinalized async checkpoint saves. Finalizing them synchronously now.")
            while writers.waiting():
                original(blocking=False)
                self._note_complete()
                time.sleep(_POLL_S if writers.waiting() else 0)
        original(*bound.args, **bound.kwargs)
        self._note_complete()

    def _note_complete(self) -> None:
        """Saves that are in no queue any more are on disk: on all ranks, the name of the latest one too."""
        left = min(writers.waiting(), default=None)
        for save in list(self._under_way):
            if save.number is not None and (left is None or save.number < left):
                self._under_way.remove(save)
                folder = self._folder(save)
                if folder is not None:
                    self._session.persisted(str(folder), save.version)

    # ---- after a failure --------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """In a survivor, before it meets the others: nothing is written in the background any more. No collectives."""
        writers.give_up(self._session.rank)
        for name in _FOUND_OUT:
            (self._given.get("checkpointing_context") or {}).pop(name, None)

    def again(self, iteration: int) -> None:
        """On all ranks, before `train()` goes on from `iteration`: save it if an earlier save was given up."""
        if not getattr(self._args, "save", None):
            return
        lasting, temporary = (
            max((s.iteration for s in self._under_way if s.temporary is kind and s.iteration <= iteration), default=0)
            for kind in (False, True)
        )
        first = self._session.world_size - self._session.rank if self._under_way else 0
        device = next(p.device for chunk in self._given["model"] for p in chunk.parameters())
        found = torch.tensor([lasting, temporary, first], dtype=torch.int64, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        lasting, temporary, first_of_all = found.tolist()
        given_up, self._under_way = self._under_way, []
        if given_up and first == first_of_all:
            for save in given_up:
                self._remove(save)
        if lasting or temporary:
            self._save(iteration, instead_of=lasting or temporary, temporary=not lasting)

    def _save(self, iteration: int, instead_of: int, temporary: bool) -> None:
        if self._session.rank == 0:
            what = "it is saved again" if iteration == instead_of else f"iteration {iteration} is saved instead"
            print(
                f"fftrain: a rank died while the checkpoint of iteration {instead_of} was being written; {what}",
                file=sys.stderr,
                flush=True,
            )
        given, timer = self._given, self._training.get_timers()(_TIMER, log_level=0)
        timer.start()  # as in train()
        self._training.save_checkpoint_and_time(
            iteration,
            given["model"],
            given["optimizer"],
            given["opt_param_scheduler"],
            self._args.num_floating_point_operations_so_far,
            given["checkpointing_context"],
            non_persistent_ckpt=temporary,
            train_data_iterator=given["train_data_iterator"],
        )
        timer.stop()
        timer.reset()

    def _folder(self, save: _Save) -> Path | None:
        """Where all ranks write `save`; None if each has a place of its own."""
        base = Path(self._args.save)
        if save.temporary:
            if self._args.non_persistent_ckpt_type != "global":
                return None
            base = Path(self._args.non_persistent_global_ckpt_dir or base / "non_persistent")
        return base / f"iter_{save.iteration:07d}"

    def _remove(self, save: _Save) -> None:
        """Remove what was begun. A complete one stays: it has metadata.json, which is written last."""
        folder = self._folder(save)
        distributed = getattr(self._args, "ckpt_format", "torch") == "torch_dist"
        if distributed and folder is not None and not folder.is_symlink() and not (folder / "metadata.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
