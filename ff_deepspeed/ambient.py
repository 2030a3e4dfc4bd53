"""What a script's own code may have changed on its way to a call: a replay of the call has to start from it.

The script's code between two calls is not run again; its effects on random numbers, learning rates and registered
state are taken at every call and put back before the call is replayed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ff_core.state import codec, registered, rng
from ff_deepspeed import scalars

ENGINE = ("_is_gradient_accumulation_boundary", "inside_no_sync_ctxt")


@dataclass(slots=True)
class Ambient:
    """Taken by `take`, put back by `put`. Autocast is not put back but entered again (`autocast`)."""

    rng: dict[str, Any]
    registered: bytes | None
    groups: list[dict[str, Any]]
    engine: dict[str, Any]
    sizes: dict[str, int]
    autocast: tuple[bool, torch.dtype]

    def put(self, engine: Any) -> None:
        for group, values in zip(engine.basic_optimizer.param_groups, self.groups, strict=True):
            group.update(copy.deepcopy(values))
        for name, value in self.engine.items():
            setattr(engine, name, value)
        scalars.set_sizes(engine, self.sizes)
        if self.registered is not None:
            registered.load(codec.decode(self.registered))
        rng.restore(self.rng)


def take(engine: Any) -> Ambient:
    """The surroundings of a call that is about to be made."""
    states = registered.collect()
    device = engine.device.type
    return Ambient(
        rng.capture(),
        codec.encode(states, "registered state") if states else None,
        [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            for group in engine.basic_optimizer.param_groups
        ],
        {name: getattr(engine, name) for name in ENGINE},
        scalars.sizes(engine),
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
    )
