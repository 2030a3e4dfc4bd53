"""The "ff_failover" block of a DeepSpeed configuration: found and validated before DeepSpeed acts on the rest.

DeepSpeed itself ignores unknown top-level keys, so the block can sit beside its own:

    {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 1}, "ff_failover": {"enabled": true}}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ff_core.config.schema import BLOCK, FailoverConfig
from ff_core.errors import ConfigError

SOURCE = "DeepSpeed configuration"


def read(config: Mapping[str, Any] | str | Path) -> FailoverConfig | None:
    """The block in `config` (a dict, a path of a JSON file, or its base64 text as DeepSpeed takes it), None if absent.

    Raises ConfigError, naming field, value and what is allowed; also for a block put where DeepSpeed would refuse it.
    """
    fields, source = _load(config)
    for name, section in fields.items():
        if isinstance(section, Mapping) and BLOCK in section and name != BLOCK:
            raise ConfigError(f'{source}: "{BLOCK}" is inside "{name}": it belongs on the top level')
    if BLOCK not in fields:
        return None
    return FailoverConfig.from_dict(fields[BLOCK], source)


def _load(config: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], str]:
    if isinstance(config, Mapping):
        return config, SOURCE
    path = Path(config)
    try:
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8")), str(config)
        return json.loads(base64.urlsafe_b64decode(str(config)).decode("utf-8")), SOURCE
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{SOURCE} = {str(config)[:200]!r}: allowed: a JSON file, its base64 text, or a dict"
        ) from error
