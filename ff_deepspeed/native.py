"""What a patched DeepSpeed calls (`fftrain patch deepspeed`). The hooks are those of `ff_deepspeed.hooks`, once.

| inserted into               | calls | when |
| ---                         | ---   | --- |
| deepspeed/__init__.py       | imported() | at the end of the import, in processes that `fftrain run` started |
| deepspeed/runtime/config.py | configured(...) | an "ff_failover" block is in the configuration |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ff_deepspeed import config, hooks

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig


def imported() -> None:
    """DeepSpeed has been imported: put the hooks in place. Raises UnsupportedError if it is too late for that."""
    hooks.install()


def configured(fields: Mapping[str, Any]) -> FailoverConfig | None:
    """The block of a DeepSpeed configuration, before any engine is made of it.

    Anywhere else than under `fftrain run` the hooks come now; they say that the job is not protected. Raises
    ConfigError.
    """
    hooks.install()
    return config.read(fields)
