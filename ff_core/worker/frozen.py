"""Frozen state of a job with a persist_dir: no slot has it, so it goes to disk once, when training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ff_core.errors import ConfigError
from ff_core.state import constants
from ff_core.worker.parts import WorkerParts

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig
    from ff_core.state.razor import Plan


def keep(parts: WorkerParts, config: FailoverConfig, plan: Plan, peers: list[int] | None) -> None:
    """In the lowest rank of `peers`, who all hold the same (None: all ranks): write it, and tell the controller.

    Training begins when it is written. Raises ConfigError if it cannot be.
    """
    if not config.persist_dir or parts.rank != min(peers or [0]) or not constants.of(plan.specs):
        return
    try:
        part = constants.write(config.persist_dir, parts.rank, plan.specs)
    except OSError as error:
        raise ConfigError(f"persist_dir {config.persist_dir} cannot be written to: {error}") from None
    parts.link.send("constants", rank=parts.rank, file=part.file, size=part.size)
