"""The "ff_failover" block of a DeepSpeed configuration: found and validated before DeepSpeed acts on the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ff_core.config import block
from ff_core.config.schema import FailoverConfig

SOURCE = "DeepSpeed configuration"


def read(fields: Mapping[str, Any]) -> FailoverConfig | None:
    """The block in `fields`, a whole configuration as DeepSpeed holds it; None if it has none. Raises ConfigError."""
    return block.read(fields, SOURCE)
