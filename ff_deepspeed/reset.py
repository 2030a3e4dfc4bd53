"""Forgets a half-done iteration: what DeepSpeed keeps between forward and the end of step.

A backward that was interrupted leaves gradients, reduction buckets and counters behind. Without this a retry asserts
("already been reduced") or, worse, adds the old gradients to the new ones and says nothing. No collectives are used
here.
"""

from __future__ import annotations

from typing import Any

from ff_deepspeed import versions
from ff_deepspeed.pipe import state as pipe
from ff_deepspeed.stage3 import layout
from ff_deepspeed.stage3 import reset as stage3
from ff_deepspeed.state_map import inner_optimizer, partitions


class Reset:
    """Made once, while no iteration runs; `run()` puts the engine back to where an iteration begins."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        # ZeRO steps one parameter group at a time by narrowing this list for the duration.
        self._inner = inner_optimizer(engine)
        self._param_groups = self._inner.param_groups
        self._stage3 = stage3.Reset(engine) if layout.is_stage3(engine.optimizer) else None

    def begin(self) -> None:
        """Training starts: what the script did before, a replacement's script does, too."""
        if self._stage3 is not None:
            self._stage3.begin()

    def run(self) -> None:
        engine, optimizer = self._engine, self._engine.optimizer
        self._inner.param_groups = self._param_groups
        _engine(engine)
        if pipe.is_pipeline(engine):
            pipe.reset(engine)
        if hasattr(optimizer, "_backward_hook_state"):
            _hooks(optimizer)
        if self._stage3 is not None:
            self._stage3.run()
        elif hasattr(optimizer, "ipg_buckets"):
            _zero12(optimizer)
        elif hasattr(optimizer, "clear_hp_grads"):
            optimizer.zero_grad()  # both the bf16 gradients and the fp32 buffers they were added to
            for p in engine.module.parameters():
                p.grad = None
        elif hasattr(optimizer, "fp32_groups"):
            optimizer.zero_grad()
            for group in optimizer.fp32_groups:
                for p in group:
                    p.grad = None
        elif hasattr(optimizer, "fp32_groups_flat"):
            optimizer.zero_grad()
            for master in optimizer.fp32_groups_flat:
                master.grad = None
            if not optimizer.has_executed_step:
                optimizer.flatten_grad_norm_mask_list.clear()  # a first step that was interrupted began it
        else:
            for p in (p for group in self._param_groups for p in group["params"]):
                p.grad = None  # FusedAdam's zero_grad() has no set_to_none
        if getattr(optimizer, "cpu_offload", False):
            return  # there gradients have a place of their own, which the next backward writes
        for partition in partitions(optimizer) or []:
            partition.grad = None


def _engine(engine: Any) -> None:
    engine._running_engine_step = False
    engine._running_engine_backward = False
    engine._running_engine_backward_count = 0
    engine._step_applied = False
    engine._manual_backward_expected = False
    engine.losses = None
    engine.zero_grad()
    _stop(engine.timers)
    engine.tput_timer.started = False
    for gate in engine.gate_modules:
        _stop(gate.timers)
    for layer in engine.moe_layers:
        _stop(layer.timers)


def _stop(timers: Any) -> None:
    for timer in timers.get_timers().values():
        timer.started_ = False  # one that runs cannot be started again


def input_check(engine: Any) -> list[Any]:
    """The hook with which AutoTP compares the inputs of its first forward between ranks, and which removes itself."""
    check = vars(engine).get("first_dataloader_check")
    return [] if check is None else [check]


def forget_input_check(engine: Any) -> None:
    """After a failure not all ranks would compare their inputs."""
    for check in input_check(engine):
        check.remove()


def _hooks(optimizer: Any) -> None:
    hooks = optimizer._backward_hook_state
    hooks.backward_active_depth = 0
    hooks.remaining_grad_acc_hooks = 0
    hooks.reset_for_new_step()


def _zero12(zero: Any) -> None:
    zero.zero_grad()
    for bucket in zero.ipg_buckets.values():
        bucket.clear()
        bucket.index = 0
    zero._release_ipg_buffers()
    versions.forget(zero, "_release_preflattened_grad_buffers")
    zero.params_already_reduced = [False] * len(zero.params_already_reduced)
    zero.averaged_gradients = {}
    zero.all_grad_tensors = {}
    zero.extra_large_param_to_reduce = {}
    zero.previous_reduced_grads.clear()
    zero.reset_partition_gradient_structures()
    zero.micro_step_id = -1  # INITIAL_MICRO_STEP_ID
    if zero.cpu_offload:
        zero.reset_cpu_buffers()
        zero._offload_accumulated_param_ids = set()
