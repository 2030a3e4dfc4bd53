"""A collective that a CUDA device runs by itself, as the copy engine's pacing follows it: csrc/writer/collectives.h."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ff_core.errors import EngineError
from ff_core.state.device import step_stream

if TYPE_CHECKING:
    import torch

    from ff_core.copy.writer import Writer


class FollowedCollective:
    """`ff_core.comm.host.Collective`: begins where the current stream of `device` is when this is made.

    One that is dropped before its end is forgotten. Only who paces asks for it: where the device's driver refuses (it
    has failed, and training will hear of that itself) nothing is followed.
    """

    def __init__(self, writer: Writer, device: torch.device) -> None:
        self._ticket, self._writer, self._device = 0, writer, device
        if writer.is_open:
            with suppress(EngineError):
                self._ticket = writer.collective_begin(step_stream(device))

    def end(self) -> None:
        """The calling thread's current stream has it behind itself. What comes after the first end counts nothing."""
        ticket, self._ticket = self._ticket, 0
        if ticket and self._writer.is_open:
            with suppress(EngineError):
                self._writer.collective_end(ticket, step_stream(self._device))

    def forget(self) -> None:
        """It is over, or nobody will know when."""
        ticket, self._ticket = self._ticket, 0
        if ticket and self._writer.is_open:
            with suppress(EngineError):
                self._writer.collective_forget(ticket)

    def __del__(self) -> None:
        self.forget()
