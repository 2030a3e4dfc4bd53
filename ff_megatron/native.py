"""What a patched Megatron-LM calls (`fftrain patch megatron`). The hooks are those of `ff_megatron.hooks`, once.

It calls `imported()` at the end of megatron/training/training.py: in processes that `fftrain run` started, and in any
other whose arguments have an --ff-* flag; there the hooks say that the job is not protected.
"""

from __future__ import annotations

from ff_megatron import hooks


def imported() -> None:
    """megatron.training.training has been imported: put the hooks in place. Raises UnsupportedError."""
    hooks.install()
