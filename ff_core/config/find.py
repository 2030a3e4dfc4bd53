"""The job's FailoverConfig, before any process starts: from --ff-config, from the script's own arguments (its DeepSpeed
file, or Megatron's --ff-failover and --ff-* flags), and from the launcher's options."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ff_core.config import file, flags
from ff_core.config.schema import BLOCK, FailoverConfig
from ff_core.errors import ConfigError

#: Options by which DeepSpeed scripts take their JSON file: DeepSpeed's own, and what is only a custom.
_DEEPSPEED_OPTIONS = ("--deepspeed_config", "--deepspeed-config")
_CUSTOM_OPTIONS = ("--config", "--ds_config", "--ds-config")


def find_config(script_args: Sequence[str], ff_config: str | None, spares: int | None) -> FailoverConfig:
    """The configuration of a job.

    script_args: the script's arguments, searched for a DeepSpeed file.  ff_config: the file of --ff-config.
    spares: of --spares, wins over the files.  Raises ConfigError naming file, field and value.
    """
    found: list[tuple[str, FailoverConfig]] = []
    if ff_config is not None:
        found.append((ff_config, FailoverConfig.from_dict(file.load_fields(ff_config), source=ff_config)))
    for option, value in _options(script_args):
        block = _deepspeed_block(option, value)
        if block is not None:
            name = value if Path(value).is_file() else option
            found.append((name, FailoverConfig.from_dict(block, source=name)))
    flagged = flags.from_words(script_args)
    if flagged is not None:
        found.append((f"the script's {flags.SWITCH}", flagged))
    for name, config in found[1:]:
        if config != found[0][1]:
            raise ConfigError(f'{found[0][0]} and {name} have different "{BLOCK}" blocks; allowed: one, or equal ones')
    config = found[0][1] if found else FailoverConfig()
    return config if spares is None else config.updated({"spares": spares}, source="--spares")


def _options(script_args: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of all arguments that may name a DeepSpeed configuration."""
    known = _DEEPSPEED_OPTIONS + _CUSTOM_OPTIONS
    found = []
    for position, word in enumerate(script_args):
        option, equals, value = word.partition("=")
        if option in known:
            if equals:
                found.append((option, value))
            elif position + 1 < len(script_args):
                found.append((option, script_args[position + 1]))
    return found


def _deepspeed_block(option: str, value: str) -> Any | None:
    """The "ff_failover" block of a DeepSpeed configuration (a file, or its text in base64), or None.

    A file that is not there yet may be written by the script. What only a custom option names need not be DeepSpeed's.
    """
    sure = option in _DEEPSPEED_OPTIONS
    if Path(value).is_file():
        try:
            fields = file.parse(file.read(value), value)
        except ConfigError:
            if sure:
                raise
            return None
    else:
        try:
            fields = json.loads(base64.urlsafe_b64decode(value).decode())
        except (binascii.Error, ValueError):
            return None
    return fields.get(BLOCK) if isinstance(fields, dict) else None
