"""A work handle of something that is already complete: what torch's synchronous callers and C++ expect of one."""

from __future__ import annotations

from datetime import timedelta

import torch

from . import compat


class DoneWork(compat.Work):
    """A handle of something that is already complete. `tensors`: its outputs; `source`: who sent, for a receive."""

    def __init__(self, tensors: list[torch.Tensor], source: int | None = None) -> None:
        super().__init__()
        self._tensors = tensors
        self._source = source

    def wait(self, timeout: timedelta = compat.NO_TIMEOUT) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> list[torch.Tensor]:
        return self._tensors

    def synchronize(self) -> None:
        return None

    def block_current_stream(self) -> None:
        return None

    def source_rank(self) -> int:
        return self._source_rank()

    def _source_rank(self) -> int:
        if self._source is None:
            raise RuntimeError("source rank is only known of recv_anysource")
        return self._source

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
        future.set_result(self._tensors)
        return future

    def get_future_result(self) -> torch.futures.Future[int]:
        future: torch.futures.Future[int] = torch.futures.Future()
        future.set_result(0)  # WorkResult.SUCCESS
        return future
