"""What the script of an unmodified loop may have set on the model on its way to a call.

Train and eval mode, requires_grad, and plain attributes such as a dropout rate. The script's own code is not run again
after a failure, so these are taken at every engine(...) and put back before the call is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ff_core.state.modes import set_trained, set_training, trained, training_of

if TYPE_CHECKING:
    from ff_deepspeed.adapter import DeepSpeedAdapter


@dataclass(slots=True)
class Switches:
    """Taken by `take`, put back by `put`."""

    modes: bytes
    trains: bytes
    attributes: dict[str, Any]
    adapter: DeepSpeedAdapter

    def put(self) -> None:
        adapter = self.adapter
        members = adapter.members.look()
        set_training(self.modes, members.modules)
        set_trained(self.trains, (parameter for _, parameter in members.parameters))
        adapter.attributes.load(self.attributes)


def take(adapter: DeepSpeedAdapter) -> Switches:
    """As they are now."""
    members = adapter.members.look()
    trains = trained(parameter for _, parameter in members.parameters)
    return Switches(training_of(members.modules), trains, adapter.attributes.copy(), adapter)


@contextmanager
def unused(adapter: DeepSpeedAdapter) -> Iterator[None]:
    """A forward that does not count leaves nothing behind: buffers (running means, counts) and plain attributes."""
    before = [
        (owner._buffers, name, buffer, buffer.clone())
        for owner in adapter.engine.module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    attributes = adapter.attributes.copy()
    try:
        yield
    finally:
        adapter.attributes.load(attributes)
        with torch.no_grad():
            for owners, name, buffer, value in before:
                buffer.copy_(value)
                owners[name] = buffer
