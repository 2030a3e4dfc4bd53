"""Models of transformers: what switches activation checkpointing on again adds no second hook.

TRL switches it off and on around each pass of a reference model and around each generation. Every time transformers
puts one more hook on the embeddings, `output.requires_grad_(True)`, and leaves the earlier ones there. So a model has
as many as it has made passes, and its replacement has one. Here the earlier ones go first: the hook does the same
however often it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.worker import session
from ff_core.worker.hooks import wrap


def install() -> None:
    """transformers.modeling_utils has been imported. Once per process."""
    from transformers.modeling_utils import PreTrainedModel

    wrap(PreTrainedModel, "enable_input_require_grads", _enable)


def _enable(original: Callable[..., None], model: Any, *args: Any, **kwargs: Any) -> None:
    if session.current() is not None:
        model.disable_input_require_grads()
    original(model, *args, **kwargs)
