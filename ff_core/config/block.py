"""The one reader of the "ff_failover" block of a DeepSpeed configuration.

DeepSpeed takes a configuration as a dict, a file of JSON or Hjson, or the base64 of its text. Hugging Face's Trainer
also takes the text itself. DeepSpeed ignores unknown keys on the top level, so the block can sit beside its own:

    {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 1}, "ff_failover": {"enabled": true}}
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ff_core.config import file
from ff_core.config.fields import BLOCK
from ff_core.config.schema import FailoverConfig
from ff_core.errors import ConfigError

#: A larger file is no configuration: an argument may name data of any size.
_MOST_BYTES = 1 << 20


def read(fields: Mapping[str, Any], source: str) -> FailoverConfig | None:
    """The block in a whole configuration, None if it has none.

    source: what to call the configuration in messages. Raises ConfigError, naming field, value and what is allowed;
    also for a block in a place where DeepSpeed would refuse or ignore it.
    """
    for name, section in fields.items():
        if name != BLOCK and isinstance(section, Mapping) and BLOCK in section:
            raise ConfigError(f'{source}: "{BLOCK}" is inside "{name}": it belongs on the top level')
    return FailoverConfig.from_dict(fields[BLOCK], source) if BLOCK in fields else None


def read_argument(value: str, option: str, sure: bool) -> tuple[FailoverConfig, str] | None:
    """The block that an argument of a script leads to, and its source. None: it leads to none.

    value: of the argument: a file, or a configuration as text.  option: its name, for messages.  sure: the option is
    one for a DeepSpeed configuration. Else the value may be anything, and only a block on the top level counts. A file
    that does not exist yet may be written by the script. Raises ConfigError.
    """
    is_file = _is_file(value)
    source = value if is_file else option
    try:
        fields = _from_file(value, sure) if is_file else _from_text(value, option, sure)
    except ConfigError:
        if sure:
            raise
        return None
    if not isinstance(fields, Mapping) or (not sure and BLOCK not in fields):
        return None
    found = read(fields, source)
    return None if found is None else (found, source)


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long for a name, or a zero byte in it
        return False


def _from_file(name: str, sure: bool) -> Any:
    if not sure and Path(name).stat().st_size > _MOST_BYTES:
        return None
    text = file.read(name)
    return file.parse(text, name) if sure or BLOCK in text else None


def _from_text(value: str, option: str, sure: bool) -> Any:
    if value.lstrip().startswith("{"):
        return file.parse(value, option) if BLOCK in value else None
    if not sure:
        return None
    try:
        return file.parse(base64.urlsafe_b64decode(value).decode(), option)
    except (binascii.Error, ValueError, ConfigError):
        return None  # no base64, so a file that is not there yet
