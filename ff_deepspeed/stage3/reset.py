"""Forgets what ZeRO-3 keeps between forward and the end of step. No collectives.

An interrupted iteration leaves parameters whole or in flight, all-gathers that were launched ahead, and a trace of
the order in which modules run. A replacement has no trace, and without one DeepSpeed gathers in another order. So all
ranks begin without: survivors forget theirs, and record it again in the next iterations. Values do not depend on it.

Parameters of other modules that DeepSpeed found out about during forward ("external") are forgotten too: it finds them
again. A replacement does not know them either.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_deepspeed.stage3 import layout


class Reset:
    """Of one engine. `begin()` when training starts, `run()` while nothing of the engine runs."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.begin()

    def begin(self) -> None:
        """What is known about the model now is known to a replacement, too."""
        module = self._engine.module
        self._stack = list(layout.forward_stack())
        self._external = [(m, dict(m._external_params)) for m in module.modules() if hasattr(m, "_external_params")]
        self._dangling = {id(p) for p in module.parameters() if p.is_external_param}

    def run(self) -> None:
        optimizer = self._engine.optimizer
        self._modules()
        self._coordinator(layout.coordinator_of(optimizer))
        for p in self._engine.module.parameters():
            self._parameter(p)
        _gradients(optimizer)
        for group in (group for inner in layout.inner_optimizers(optimizer) for group in inner.param_groups):
            group["params"] = []  # a step that was interrupted had put its masters there

    def _modules(self) -> None:
        layout.forward_stack()[:] = self._stack
        for module, external in self._external:
            module._external_params.clear()
            module._external_params.update(external)
        for module in self._engine.module.modules():
            if hasattr(module._parameters, "_in_forward"):
                module._parameters._in_forward = False
            if hasattr(module, "ds_recompute_parameters"):
                module.ds_recompute_parameters.clear()
            for counter in ("applied_pre_backward_ref_cnt", "ds_grads_remaining"):
                if counter in vars(module):
                    setattr(module, counter, 0)

    @staticmethod
    def _coordinator(coordinator: Any) -> None:
        from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle
        from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

        # Not waited for: the groups of these all-gathers are gone, and the device is idle.
        layout.private(coordinator, "inflight_param_registry").clear()
        AllGatherCoalescedHandle.free_buffer()
        layout.set_private(coordinator, "trace_mode", ZeRoTraceMode.INVALID)
        coordinator._clear_trace_structures()
        cache = layout.release_cache()
        assert cache is not None, "checked when the engine was made"
        cache.cache_clear()
        layout.set_private(coordinator, "step_id", 0)
        layout.set_private(coordinator, "n_available_params", 0)
        for name in ("ongoing_fetch_events", "ongoing_fetch_leaf_module_events"):
            layout.private(coordinator, name).clear()
        layout.private(coordinator, "active_backward_submodules", set()).clear()  # since 0.19
        coordinator.hierarchy = 0

    def _parameter(self, p: Any) -> None:
        from deepspeed.runtime.zero import partition_parameters

        p.ds_active_sub_modules.clear()
        p.is_external_param = id(p) in self._dangling
        # The copy of hpZ. Whether there is one decides which group gathers, so no rank may have any.
        p.ds_secondary_tensor = None
        # How many bodies of deepspeed.zero.GatheredParameters it is gathered for; counted since 0.19.
        vars(p).pop(getattr(partition_parameters, "DS_Z3_GATHERED_PARAM_CONTEXT_DEPTH_ATTR", ""), None)
        nowhere = partition_parameters.ZeroParamStatus.NOT_AVAILABLE
        if p.ds_status is not nowhere:
            p.data = torch.empty(0, dtype=p.dtype, device=p.device)
            p.ds_status = nowhere


def _gradients(optimizer: Any) -> None:
    optimizer.zero_grad()  # sets micro_step_id to 0: the next gradients replace those in the buffer
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear_params()
    optimizer.params_already_reduced = dict.fromkeys(optimizer.params_already_reduced, False)
    optimizer.averaged_gradients = {}
    optimizer.param_reduce_events.clear()
    optimizer._offload_boundary_param_ids = set()  # since 0.19
    if optimizer.offload_optimizer:
        optimizer.reset_cpu_buffers()
    else:
        for master in layout.masters(optimizer):
            master.grad = None
