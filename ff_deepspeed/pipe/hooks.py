"""The places in DeepSpeed's PipelineEngine where FFTrainer looks in, beside those of every engine (ff_deepspeed.hooks).

| attribute | what happens there |
| --- | --- |
| PipelineEngine.train_batch | an iteration of the script's |
| ... .eval_batch | made again if a failure interrupts it |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ff_core.errors import UnsupportedError
from ff_core.state import frames
from ff_deepspeed.protection import Protection

Original = Callable[..., Any]

OWN_LOADER = (
    "engine.train_batch() without an iterator, or with one that it was given in the item before, in a loop over "
    "ff_deepspeed.batches(): those micro-batches would not go back with an iteration that is repeated. Give it the "
    "item: engine.train_batch(iter(batches))"
)
EARLY = (
    "{line}: eval_batch() before the first train_batch(): a replacement would evaluate by itself, where no other stage "
    "answers. Evaluate behind a train_batch()"
)


def _train_batch(found: Protection, original: Original, engine: Any, data_iter: Any = None) -> Any:
    script = found.pipeline
    assert script is not None, "a hook of PipelineEngine"
    found.check()
    if not found.loop.used:
        return script.train_batch(original, data_iter)
    found.session.check()  # an interrupt that the script has swallowed
    if data_iter is None or not script.gives(data_iter):
        raise found.fail(UnsupportedError(OWN_LOADER))
    return original(engine, _noted(found, data_iter))


def _noted(found: Protection, batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if found.session.training:
            found.session.given(batch)
        yield batch


def _eval_batch(found: Protection, original: Original, engine: Any, data_iter: Any, *args: Any, **kwargs: Any) -> Any:
    script = found.pipeline
    assert script is not None, "a hook of PipelineEngine"
    if not found.started:
        raise found.fail(UnsupportedError(EARLY.format(line=frames.line())))
    if not found.loop.used:
        return script.eval_batch(original, data_iter, args, kwargs)
    before = engine.data_iterator
    try:
        return original(engine, data_iter, *args, **kwargs)
    finally:
        engine.data_iterator = before  # if it was interrupted


OF_PROTECTED: dict[str, Callable[..., Any]] = {"train_batch": _train_batch, "eval_batch": _eval_batch}
