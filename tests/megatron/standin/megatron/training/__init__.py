"""The parts of Megatron-LM's `megatron.training` that a recovery meets, for tests: the package is not on PyPI.

Names, signatures, order of collectives and module-level look-ups are those of tag core_v0.16.1; everything that does
the work (parallel state, model, DDP, optimizers, schedules, timers, rerun state machine) is the real megatron-core.
`megatron` is a namespace package, so this directory on sys.path completes the installed megatron-core. With a checkout
of Megatron-LM in MEGATRON_LM_PATH its own package is used instead.
"""

from .global_vars import get_args, get_timers
from .training import pretrain

__all__ = ["get_args", "get_timers", "pretrain"]
