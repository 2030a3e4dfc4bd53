"""FFTrainer's plugin for Megatron-LM, which is coming: `--ff-failover` will protect a job as ff_deepspeed does.

Until then importing this package works and using any name of it raises UnsupportedError.
"""

from __future__ import annotations

from typing import NoReturn

from ff_core.errors import UnsupportedError


def __getattr__(name: str) -> NoReturn:
    # Names that Python's own machinery asks for must be absent in the ordinary way.
    if name.startswith("__"):
        raise AttributeError(f"module 'ff_megatron' has no attribute {name!r}")
    raise UnsupportedError(
        f"ff_megatron.{name}: Megatron-LM jobs cannot be protected yet; this is being built. "
        "What works today: DeepSpeed with ZeRO 0, 1 and 2 (ff_deepspeed)"
    )
