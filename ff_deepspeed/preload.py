"""Operators that DeepSpeed compiles and loads on first use: spares load them before they are needed.

A live rank publishes which ones it has loaded; `load_ops` runs in a spare, which has imported the same modules.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

log = logging.getLogger("ff_deepspeed")

# Module name of the compiled operator -> name of its builder.
BUILDERS = {
    "deepspeed_shm_comm": "ShareMemCommBuilder",
    "cpu_adam": "CPUAdamBuilder",
    "cpu_lion": "CPULionBuilder",
    "cpu_adagrad": "CPUAdagradBuilder",
}


def publish(session: AdapterSession) -> None:
    """Tell spares which operators this process has loaded."""
    names = loaded()
    if names:
        session.call_in_spares("ff_deepspeed.preload:load_ops", names)


def loaded() -> list[str]:
    """Names of the operators (keys of BUILDERS) that this process has loaded."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    return sorted(name for name in BUILDERS if name in OpBuilder._loaded_ops)


def load_ops(names: list[str]) -> None:
    """Load operators by name. One that does not load is logged and left to the first use."""
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        # Found out at first use, by running the compiler. On a GPU that would open a context, on some device.
        _ = deepspeed.ops.__compatible_ops__
    for name in names:
        if name not in BUILDERS:
            log.warning("operator %r: unknown; known: %s", name, ", ".join(sorted(BUILDERS)))
            continue
        try:
            get_accelerator().create_op_builder(BUILDERS[name]).load()
        except Exception as error:
            log.warning("operator %r did not load in a spare: %s", name, error)
