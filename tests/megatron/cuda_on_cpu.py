"""Lets the real megatron-core run on a machine without a GPU: what it says to CUDA reaches the CPU.

    import cuda_on_cpu        # before anything of megatron is used

Megatron-core asks `torch.cuda` for devices, streams, events and random states by name, and compares tensor types as
text ("torch.cuda.FloatTensor"). Those names are answered here for the CPU. What a test under this shim cannot see: CUDA
and CPU share one random generator, streams order nothing, and gloo never hangs or aborts as NCCL does.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _Anything:
    """A stream or event: every method exists and does nothing. All streams are the same one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Anything)

    __hash__ = object.__hash__

    def record_event(self, *args: Any) -> _Anything:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _nothing(*args: Any, **kwargs: Any) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()  # may be entered more than once, as a stream's context may


class _Generators:
    def __getitem__(self, device: Any) -> torch.Generator:
        return torch.default_generator


class _AsCuda(TorchFunctionMode):
    """Tensors asked for on "cuda" are made on the CPU, and CPU tensors call themselves CUDA tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "type" and len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if name == "cuda" and args and isinstance(args[0], torch.Tensor):
            return args[0]
        if name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") == "is_cuda":
            return True
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        if name == "to" and len(args) > 1 and str(args[1]).startswith("cuda"):
            args = (args[0], _CPU, *args[2:])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return func(*args, **kwargs)


def _answers() -> dict[str, Any]:
    answers: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "device_count": lambda: 1,
        "get_device_capability": lambda *args: (8, 0),
        "memory_stats": lambda *args, **kwargs: defaultdict(int),
        "Stream": _Anything,
        "Event": _Anything,
        "stream": _nothing,
        "device": _nothing,
        "current_stream": lambda *args, **kwargs: _Anything(),
        "default_stream": lambda *args, **kwargs: _Anything(),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed) and None,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "_lazy_call": lambda function, **kwargs: function(),
        "default_generators": _Generators(),
    }
    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats", "ipc_collect", "init"):
        answers[name] = lambda *args, **kwargs: None
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        answers[name] = lambda *args, **kwargs: 0
    return answers


def _install() -> None:
    replaced: dict[int, Any] = {}
    for name, answer in _answers().items():
        replaced[id(getattr(torch.cuda, name, None))] = answer
        setattr(torch.cuda, name, answer)
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *args, **kwargs: None
    replaced.pop(id(None), None)
    # A process that imported megatron ahead (a spare) has some of these names already in megatron's modules.
    for module_name, module in list(sys.modules.items()):
        if module_name == "torch.cuda.random" or module_name.startswith("megatron."):
            for name, value in list(vars(module).items()):
                if id(value) in replaced:
                    setattr(module, name, replaced[id(value)])
    _AsCuda().__enter__()  # for this thread, for ever: the backward pass of CPU tensors runs in it too


_install()
