"""The places in DeepSpeed where FFTrainer looks in: class attributes, replaced once per process.

| attribute                          | what happens there |
| ---                                | --- |
| DeepSpeedEngine.__init__           | the block is validated, unsupported jobs are refused, the engine is protected |
| ... ._take_model_step              | the only place that changes weights: then the new version is copied |
| ... .forward, backward, step       | the calls of an unmodified loop (ff_deepspeed.unmodified) |
| ... .set_gradient_accumulation_boundary | in the exact loop only DeepSpeed counts micro-batches |
| ... .save_checkpoint               | an unmodified loop's call; remembers the client state |
| ... ._zero3_consolidated_16bit_state_dict | whole weights are saved: writes of the same values do not count |
| ... .load_checkpoint               | a replacement is answered from memory |
| DeepSpeedCPUAdam, FusedAdam        | from __init__ on what they hide in C++ is followed |
| data loaders                       | an unmodified loop's data; its collectives are noticed in the groups |

Replacing attributes works however the script imported its names, and engines that are not protected run DeepSpeed's
own code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ff_core.errors import UnsupportedError
from ff_core.state import optimizer_state
from ff_core.worker import session
from ff_core.worker.boot import on_torch_distributed, when_worker
from ff_core.worker.hooks import wrap
from ff_deepspeed import collectives, cpu_adam, data_hooks, protection, second, support, trainers
from ff_deepspeed import config as configuration
from ff_deepspeed.pipe import hooks as pipe
from ff_deepspeed.protection import Protection, guard
from ff_deepspeed.stage3 import state as stage3

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_core.config.schema import FailoverConfig
    from ff_core.worker.interface import AdapterSession

Original = Callable[..., Any]
_installed: set[str] = set()


def install() -> None:
    """Put the hooks in place. Idempotent; imports deepspeed.

    An import hook calls it, a patched DeepSpeed (ff_deepspeed.native), or the script by `import ff_deepspeed`. A spare
    comes here before it has a rank to play; the rest follows when it has one.
    """
    if "deepspeed" not in _installed:
        _installed.add("deepspeed")
        _install_in_deepspeed()
        trainers.install()
    when_worker(_install_in_worker)


def _install_in_worker() -> None:
    on_torch_distributed()
    if "script" not in _installed:
        mine = session.current()
        assert mine is not None, "when_worker calls this in workers only"
        install_in_script(mine.groups)
        mine.at_end(_end_of_script)


def install_in_script(registry: GroupRegistry) -> None:
    """What an unmodified loop needs to be noticed: its collectives and its data loaders. Once per process."""
    _installed.add("script")
    collectives.install(registry)
    data_hooks.install()


def _install_in_deepspeed() -> None:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.pipe.engine import PipelineEngine

    wrap(DeepSpeedEngine, "__init__", _init)
    wrap(PipelineEngine, "__init__", _pipeline_init)
    for name, hook in pipe.OF_PROTECTED.items():
        wrap(PipelineEngine, name, guard.guarded_method(hook))
    wrap(DeepSpeedEngine, "_take_model_step", _take_model_step)
    for name, hook in _OF_PROTECTED.items():
        wrap(DeepSpeedEngine, name, guard.guarded_method(hook))
    for kind in (DeepSpeedCPUAdam, FusedAdam):
        wrap(kind, "__init__", _adam_init)
    optimizer_state.know(cpu_adam)  # of one that no engine has


def _init(original: Original, engine: Any, *args: Any, **kwargs: Any) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    given = inspect.signature(original).bind(engine, *args, **kwargs).arguments
    config = configuration.read(given["config_class"]._param_dict)
    if config is not None and config.enabled:
        others = given["model"], given.get("mpu"), given.get("optimizer")
        support.check_config(given["config_class"], type(engine), *others)
    original(engine, *args, **kwargs)
    if type(engine) is DeepSpeedEngine:
        _protect(engine, config)


def _pipeline_init(original: Original, engine: Any, *args: Any, **kwargs: Any) -> None:
    original(engine, *args, **kwargs)
    _protect(engine, configuration.read(engine._config._param_dict))


def _protect(engine: Any, config: FailoverConfig | None) -> None:
    protection.protect(engine, config)
    found = protection.of(engine)
    if found is not None:
        _inject_in_backward(engine, found.session)


def _inject_in_backward(engine: Any, session: AdapterSession) -> None:
    """Half of the parameters have their gradients when the middle one gets its own."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    if parameters:
        parameters[len(parameters) // 2].register_hook(lambda gradient: session.inject("backward"))


def _take_model_step(original: Original, engine: Any, *args: Any, **kwargs: Any) -> None:
    found = protection.of(engine)
    if found is not None:
        found.step(original, *args, **kwargs)
        return
    main = protection.current()
    if second.of(engine) is not None and main is not None and not main.loop.used:
        raise UnsupportedError(second.USUAL_LOOP)
    original(engine, *args, **kwargs)


# ---- of a protected engine: an engine that is not runs `original` ---------------------------------------------------


def _forward(found: Protection, original: Original, engine: Any, *args: Any, **kwargs: Any) -> Any:
    if not engine.module.training or not torch.is_grad_enabled():
        return original(engine, *args, **kwargs)
    found.check()
    if found.loop.used:
        found.session.check()  # an interrupt that the script has swallowed
        if found.session.training and found.pipeline is None:  # else they may be another stage's activations
            found.session.given((args, kwargs))
        found.session.inject("forward")
        return original(engine, *args, **kwargs)
    return found.unmodified.forward(original, args, kwargs)


def _backward(found: Protection, original: Original, engine: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    if found.loop.used:
        found.session.check()
        if found.session.training:
            found.session.loss(loss)
        return original(engine, loss, *args, **kwargs)
    kwargs.update(zip(("retain_graph", "scale_wrt_gas"), args, strict=False))
    return found.unmodified.backward(original, loss, kwargs)


def _step(found: Protection, original: Original, engine: Any, *args: Any, **kwargs: Any) -> None:
    if found.loop.used:
        found.session.check()
        original(engine, *args, **kwargs)
    else:
        found.unmodified.step(original, args, kwargs)


def _save_checkpoint(found: Protection, original: Original, engine: Any, *args: Any, **kwargs: Any) -> Any:
    if found.passing:
        return True
    result = found.unmodified.call(original, (engine, *args), kwargs, writes=False, alone=lambda: None)
    if not result:
        return result
    directory = kwargs.get("save_dir", args[0] if args else "")
    tag = kwargs.get("tag", args[1] if len(args) > 1 else None) or f"global_step{engine.global_steps}"
    state = kwargs.get("client_state", args[2] if len(args) > 2 else {})
    found.client.saved(engine.global_steps, f"{directory}/{tag}", state)
    return result


def _whole_weights(found: Protection, original: Original, engine: Any, *args: Any, **kwargs: Any) -> Any:
    with stage3.same_values(engine):
        return found.unmodified.call(original, (engine, *args), kwargs, writes=False, alone=lambda: None)


def _load_checkpoint(found: Protection, original: Original, engine: Any, *args: Any, **kwargs: Any) -> Any:
    return found.load_checkpoint(original, args, kwargs)


def _boundary(found: Protection, original: Original, engine: Any, is_boundary: bool) -> None:
    if found.loop.used and found.client.loop is None:  # else accelerate counts, and its count is state
        found.loop.check_boundary(is_boundary)
    original(engine, is_boundary)


_OF_PROTECTED: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "backward": _backward,
    "step": _step,
    "set_gradient_accumulation_boundary": _boundary,
    "save_checkpoint": _save_checkpoint,
    "_zero3_consolidated_16bit_state_dict": _whole_weights,
    "load_checkpoint": _load_checkpoint,
}


def _end_of_script() -> None:
    """An unmodified loop says nothing when it is over: the end of the script is its last sign."""
    found = protection.current()
    if found is not None:
        found.unmodified.end()


def _adam_init(original: Original, optimizer: Any, *args: Any, **kwargs: Any) -> None:
    original(optimizer, *args, **kwargs)
    if session.current() is not None:
        # From the very first step: what happened before cannot be read from the C++ object.
        cpu_adam.follow(optimizer)
