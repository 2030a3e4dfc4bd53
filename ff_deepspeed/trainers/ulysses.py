"""ALST, DeepSpeed's sequence parallelism for models of transformers: its data loader is refused by name.

`UlyssesSPDataLoaderAdapter` lets each sequence-parallel rank load other samples, and gathers them: several
micro-batches at once, which it keeps in a queue. A replacement goes through its data by itself, where nobody answers.
The rest of it (`UlyssesSPAttentionHF`, tiled losses) keeps nothing from one iteration to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.errors import UnsupportedError
from ff_core.state import frames
from ff_core.worker.hooks import wrap
from ff_deepspeed import protection

GATHERS = (
    "{line}: UlyssesSPDataLoaderAdapter gathers the batches of all sequence-parallel ranks, and keeps them: after a "
    "failure a replacement could not ask for them again. Accelerate's prepare() and Hugging Face's Trainer use it if "
    "sp_size > 1. Let all sequence-parallel ranks load the same batch, and each take its part, in a loop of your own: "
    "DistributedSampler(data, num_replicas=world_size // sp_size, rank=rank // sp_size). Shift the labels first; then "
    "take x.chunk(sp_size, dim=1)[rank % sp_size] of each tensor"
)


def install() -> None:
    """deepspeed.runtime.sequence_parallel.ulysses_sp has been imported. Once per process."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPDataLoaderAdapter

    wrap(UlyssesSPDataLoaderAdapter, "refill", _refill)


def _refill(original: Callable[..., None], adapter: Any) -> None:
    found = protection.current()
    if found is not None:
        raise found.fail(UnsupportedError(GATHERS.format(line=frames.line())))
    original(adapter)
