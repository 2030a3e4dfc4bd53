"""Engines beside the protected one: a discriminator, a frozen reference model.

One engine of a process is protected as this package's other modules say. Any other engine that is trained is saved
whole, by the training thread, with the scalars of each version: its weights, masters, moments, buffers and counters.
That is right for every ZeRO stage that the protected engine may have, and meant for small models.
An engine that is never stepped needs nothing: the script builds it again. Under ZeRO-3 it is refused.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import found, switched
from ff_core.state.attributes import Attributes
from ff_core.state.members import Members
from ff_core.state.modes import Modes
from ff_deepspeed import moments, scalars, state_map, support
from ff_deepspeed.pipe import state as pipe
from ff_deepspeed.reset import Reset

_included = 0

USUAL_LOOP = (
    "a second DeepSpeed engine is trained in the usual loop. Its calls cannot be made again one by one after a "
    "failure: change two lines of the loop: `for batches in ff_deepspeed.batches(engine, loader)` with "
    "`with ff_deepspeed.iteration()` inside"
)


PARTITIONED = (
    "a second DeepSpeed engine, which is not trained, uses ZeRO-3. A failure leaves its parameters half gathered, and "
    "a replacement cannot get its part of them. Give that engine a configuration with ZeRO stage 0, or leave the model "
    "without an engine"
)


PIPELINE = (
    "a second DeepSpeed engine of this process is a PipelineEngine: its stages agree on shapes once, and a replacement "
    "has agreed on none. Only one engine may be a pipeline, the one that is protected: initialize it first"
)


def is_trained(engine: Any) -> bool:
    """Whether `engine` can be stepped: DeepSpeed gives an engine without an optimizer a stand-in."""
    from deepspeed.runtime.utils import DummyOptim

    inner = engine.basic_optimizer
    return engine.optimizer is not None and inner is not None and not isinstance(inner, DummyOptim)


def is_partitioned(engine: Any) -> bool:
    """Whether `engine` partitions its parameters: an interrupted forward leaves some of them whole, or in flight."""
    return bool(engine.zero_optimization_partition_weights())


def include(engine: Any) -> None:
    """Save a trained `engine` beside the protected one, whatever its block says. Called when it is complete.

    Raises UnsupportedError if its state cannot be saved.
    """
    global _included
    if pipe.is_pipeline(engine):
        raise UnsupportedError(PIPELINE)
    if not is_trained(engine):
        raise UnsupportedError(PARTITIONED)
    check_supported(engine)
    _included += 1
    inner = state_map.inner_optimizer(engine)
    engine._ff_second = SecondEngine(engine)
    found.include(f"{type(engine).__qualname__} #{_included + 1}", engine._ff_second, inner)


def of(engine: Any) -> SecondEngine | None:
    """What saves `engine`, None if it is the protected one or none."""
    return vars(engine).get("_ff_second")


class SecondEngine:
    """All that changes in one engine, as one object with state_dict() and load_state_dict()."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._reset = Reset(engine)
        self._members = Members(engine.module)
        self._modes = Modes(self._members)
        self._attributes = Attributes(self._members)
        switched.leave_out(engine)

    @functools.cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        """Once training begins: a checkpoint that the script loads before gives the optimizer other tensors."""
        engine = self._engine
        self._attributes.begin()
        moments.of(state_map.inner_optimizer(engine)).create()
        specs = state_map.declare(engine, {name for name, _ in engine.module.named_buffers()}, weights_edited=True)
        return {spec.name: spec.tensor for spec in specs if not spec.name.startswith("frozen.")}

    def state_dict(self) -> dict[str, Any]:
        """{"trainer", "modes", "attributes", "tensors", "buffers"}; the tensors alias live ones."""
        buffers = self._members.version_ends().buffers
        tensors = self._tensors  # made here at the first time, the numbers with them
        switches = {"modes": self._modes.save(), "attributes": self._attributes.save()}
        return {"trainer": scalars.save(self._engine), **switches, "tensors": tensors, "buffers": dict(buffers)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Forget the half-done iteration and put `state_dict()` back, tensors in place.

        Raises FailoverError if this engine has other tensors.
        """
        self._reset.run()
        tensors = self._tensors
        self._modes.load(saved["modes"])
        self._attributes.load(saved["attributes"])
        buffers = dict(self._engine.module.named_buffers())
        for live, values in ((tensors, saved["tensors"]), (buffers, saved["buffers"])):
            shapes = {name: tuple(tensor.shape) for name, tensor in live.items()}
            if shapes != {name: tuple(value.shape) for name, value in values.items()}:
                raise FailoverError("a second engine has other tensors than the dead rank's: the script built another")
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(values[name])
        scalars.load(self._engine, saved["trainer"])


def check_supported(engine: Any) -> None:
    """Raises UnsupportedError listing why a trained engine's state cannot be saved."""
    obstacles = list(support.engine_obstacles(engine))
    if engine.zero_optimization_stage() > 2:
        obstacles.insert(0, "it uses ZeRO-3; stages 0, 1 and 2 can be saved")
    if obstacles:
        raise UnsupportedError(
            f"a second DeepSpeed engine is trained in this process, and its state cannot be saved: "
            f"{'; '.join(obstacles)}. Every engine that is trained must be saved with the job's versions: give it a "
            "configuration that can be protected (ZeRO 0, 1 or 2 with a torch.optim.AdamW), or run "
            'the job unprotected: "ff_failover": {"enabled": false} for all engines'
        )
