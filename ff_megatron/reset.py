"""Forgets a half-done iteration and makes the process fit to enter `train()` again. No collectives are used here.

Each line answers something that was seen to go wrong, for example:
  * Timers that run assert when they are started again.
  * A no_sync_func that is set asserts under overlap_grad_reduce.
  * A rerun state machine in the middle of a step takes a path with another collective. The job then hangs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.distributed import distributed_c10d as c10d

from ff_megatron import buckets, experts, versions

_FUNCTIONS = ("no_sync_func", "grad_sync_func", "param_sync_func")


class Reset:
    """Made once, before `train()` is entered for the first time; `run()` goes back to where it is entered."""

    def __init__(self, model: list[Any], optimizer: Any, config: Any, timers: Iterable[Any]) -> None:
        from megatron.core.rerun_state_machine import get_rerun_state_machine

        self._model, self._optimizer, self._config, self._timers = model, optimizer, config, timers
        self._no_sync = buckets.NoSync(model)
        self._functions = {name: getattr(config, name) for name in _FUNCTIONS}
        self._rerun_mode = get_rerun_state_machine().get_mode()

    def run(self) -> None:
        self._no_sync.close()
        buckets.reset(self._model)  # first: other ranks wait for these sockets to close
        for chunk in self._model:
            for p in chunk.parameters():
                p.grad = None
            chunk.force_all_reduce = False
            chunk.zero_grad_buffer()
            if getattr(chunk, "use_forward_hook", False) and not chunk.remove_forward_pre_hook_handles:
                chunk.enable_forward_pre_hook()
        self._optimizer.zero_grad()
        for optimizer in (self._optimizer, *getattr(self._optimizer, "chained_optimizers", ())):
            for name in versions.series().asked_once:  # a newcomer asks again, so everybody must; stubs too
                vars(optimizer).pop(name, None)
        for name, function in self._functions.items():
            setattr(self._config, name, function)
        for timer in self._timers:
            timer._started = False
        c10d._world.pg_coalesce_state.clear()
        experts.reset(self._model)
        versions.drop_sums()
        self._rerun()

    def _rerun(self) -> None:
        from megatron.core.rerun_state_machine import RerunState, get_rerun_state_machine

        machine = get_rerun_state_machine()
        machine.state = RerunState.NOT_RUNNING_YET
        machine.mode = self._rerun_mode
        machine.saved_state = machine.data_iterator_checkpoints = None
