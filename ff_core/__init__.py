"""FFTrainer's core: what protects a training job, whatever its framework.

Public names are loaded when they are first used, so that importing this package costs nothing and does not import torch
(the processes that supervise a job have no use for it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig
    from ff_core.state.registered import register_state

__version__ = "0.1.0"
__all__ = ["FailoverConfig", "__version__", "build_info", "is_fftrain_launched", "is_replacement", "register_state"]

_LAZY = {"FailoverConfig": "ff_core.config.schema", "register_state": "ff_core.state.registered"}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'ff_core' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def is_replacement() -> bool:
    """True in a process that took over a dead rank: its script starts from the top, in the middle of the job.

    Use it to leave out what must happen once per job (writing a header, registering an experiment). False when the job
    does not run under `fftrain run`.
    """
    from ff_core.worker import session

    mine = session.current()
    return mine is not None and mine.is_replacement


def is_fftrain_launched() -> bool:
    """True in a process that `fftrain run` started as a rank; False under torchrun, or when started by hand."""
    from ff_core.worker import session

    return session.current() is not None


def build_info() -> dict[str, Any]:
    """How the copy engine was built: compiler, CRC32C implementation, CUDA, transports.

    Raises EngineError if it was not built.
    """
    import json

    from ff_core.copy import binding

    return json.loads(binding.build_info())
