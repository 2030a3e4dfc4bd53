"""Reading a configuration file: JSON, or the Hjson that DeepSpeed reads, with or without an "ff_failover" block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ff_core.config.fields import BLOCK
from ff_core.errors import ConfigError


def load_fields(name: str) -> Any:
    """The fields for `FailoverConfig.from_dict` in the file `name`: its "ff_failover" block, or all of it.

    Raises ConfigError naming the file if it cannot be read or is not JSON.
    """
    fields = parse(read(name), name)
    return fields.get(BLOCK, fields) if isinstance(fields, dict) else fields


def read(name: str) -> str:
    """The text of file `name`. Raises ConfigError."""
    try:
        return Path(name).read_text()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file; allowed: JSON") from None


def parse(text: str, name: str) -> Any:
    """`text` of the file `name`. Raises ConfigError."""
    try:
        return json.loads(text)
    except ValueError as error:
        problem = error
    # DeepSpeed reads Hjson, which is JSON with comments and fewer commas.
    try:
        import hjson  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return hjson.loads(text)
    except ImportError:
        pass
    except ValueError as error:
        problem = error
    raise ConfigError(f"{name}: not JSON: {problem}")
