"""The places in DeepSpeed where FFTrainer looks in: class attributes, replaced once per process.

| attribute                         | what happens there |
| ---                               | --- |
| DeepSpeedEngine.__init__          | the block is validated, unsupported jobs are refused, the engine is protected |
| DeepSpeedEngine._take_model_step  | the only place that changes weights: fenced, then the new version is copied |
| DeepSpeedEngine.forward, backward | fault injection |
| DeepSpeedEngine.save_checkpoint   | remembers the script's client state |
| DeepSpeedCPUAdam.__init__         | its hidden state is followed |

Replacing attributes works however the script imported its names, and engines that are not protected run DeepSpeed's
own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ff_core import failover as runtime
from ff_deepspeed import config as configuration
from ff_deepspeed import cpu_adam, protection, support

_installed = False


def install() -> None:
    """Put the hooks in place. Idempotent; imports deepspeed."""
    global _installed
    if _installed:
        return
    _installed = True
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.runtime.engine import DeepSpeedEngine

    _wrap(DeepSpeedEngine, "__init__", _init)
    _wrap(DeepSpeedEngine, "_take_model_step", _take_model_step)
    _wrap(DeepSpeedEngine, "forward", _forward)
    _wrap(DeepSpeedEngine, "save_checkpoint", _save_checkpoint)
    _wrap(DeepSpeedCPUAdam, "__init__", _cpu_adam_init)


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace owner.name by a function that calls around(original, self, *args, **kwargs)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, hooked)


def _init(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    raw = kwargs.get("config")
    config = configuration.read(raw) if raw is not None else None
    if config is not None and config.enabled:
        model = kwargs["model"] if "model" in kwargs else args[1]
        support.check_config(kwargs["config_class"], model, kwargs.get("mpu"))
    original(engine, *args, **kwargs)
    if type(engine) is DeepSpeedEngine:
        protection.protect(engine, config)
        found = protection.of(engine)
        if found is not None:
            _inject_in_backward(engine, found.failover)


def _inject_in_backward(engine: Any, failover: Any) -> None:
    """Half of the parameters have their gradients when the middle one gets its own."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    if parameters:
        parameters[len(parameters) // 2].register_hook(lambda gradient: failover.inject("backward"))


def _take_model_step(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> None:
    found = protection.of(engine)
    if found is None:
        original(engine, *args, **kwargs)
    else:
        found.step(original, *args, **kwargs)


def _forward(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    found = protection.of(engine)
    if found is not None and engine.module.training and torch.is_grad_enabled():
        found.check()
        found.failover.inject("forward")
    return original(engine, *args, **kwargs)


def _save_checkpoint(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(engine, *args, **kwargs)
    found = protection.of(engine)
    if found is not None:
        state = kwargs.get("client_state", args[2] if len(args) > 2 else {})
        found.client.remember(engine.global_steps, state)
    return result


def _cpu_adam_init(original: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> None:
    original(optimizer, *args, **kwargs)
    if runtime.current() is not None:
        # From the very first step: what happened before cannot be read from the C++ object.
        cpu_adam.follow(optimizer)
