"""Train and eval mode of models that no engine has: a teacher, an average, a metric's network.

From the start of training on it is noticed when the script calls `train()` or `eval()` of such a model. Its modes are
saved with every version then. A survivor that begins an iteration anew gets them back. A replacement does not know the
model, only that its own script has come to the start of training: it is refused if a model's modes were others by then.

A mode that is set without these two methods (`module.training = False`) is not noticed.
"""

from __future__ import annotations

import functools
import itertools
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ff_core.errors import DifferenceError
from ff_core.state import frames
from ff_core.state.modes import set_training, training_of
from ff_core.state.words import some_of

PERMANENT = (
    "the dead rank's script had switched models that no engine has to train or eval mode in its training loop: {what}. "
    "A replacement has not gone through these iterations, and its models are in the modes that they had before the "
    "loop. Call train() or eval() before the loop on every start, or in each iteration that uses the model"
)


@dataclass(slots=True)
class _Switched:
    model: weakref.ReferenceType[torch.nn.Module]
    words: str
    before: bytes  # modes before the first switch


_process = uuid.uuid4().hex  # whose numbers these are
_numbers = itertools.count()
_switched: dict[int, _Switched] = {}
_protected: list[weakref.ReferenceType[torch.nn.Module]] = []
_noticing = False
_depth = 0  # a model switches its children


def watch() -> None:
    """Have `torch.nn.Module.train` (eval() calls it, too) say what it switches. Idempotent."""
    original: Callable[..., Any] = torch.nn.Module.train
    if getattr(original, "_ff_noticed", False):
        return

    @functools.wraps(original)
    def train(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        global _depth
        if _noticing and _depth == 0:
            _notice(self)
        _depth += 1
        try:
            return original(self, *args, **kwargs)
        finally:
            _depth -= 1

    train._ff_noticed = True  # type: ignore[attr-defined]
    torch.nn.Module.train = train  # type: ignore[method-assign]


def leave_out(model: torch.nn.Module) -> None:
    """An adapter saves the modes of `model` and its parts itself."""
    _protected.append(weakref.ref(model))


def left_out() -> list[torch.nn.Module]:
    """What leave_out() was called with, and the models of the engines among it."""
    return [part for root in roots() for part in root.modules()]


def roots() -> list[torch.nn.Module]:
    """What leave_out() was called with, as far as it is alive."""
    return [root for root in (ref() for ref in _protected) if root is not None]


def begin() -> None:
    """Training begins: what is switched from now on counts."""
    global _noticing
    _noticing = True


def collect() -> dict[str, Any]:
    """{"process", "models": number -> [words, modes, modes before the first switch]}: plain values."""
    models = {}
    for number, one in list(_switched.items()):
        model = one.model()
        if model is None:
            del _switched[number]
        else:
            models[number] = [one.words, training_of(model.modules()), one.before]
    return {"process": _process, "models": models}


def load(saved: dict[str, Any]) -> None:
    """Put `collect()`'s result back. Raises DifferenceError in a replacement, whose models would be in other modes."""
    own = saved["models"] if saved["process"] == _process else {}
    for number, one in _switched.items():
        model = one.model()
        if model is not None:
            set_training(own[number][1] if number in own else one.before, model.modules())
    if saved["process"] != _process:
        wrong = [words for words, modes, before in saved["models"].values() if modes != before]
        if wrong:
            raise DifferenceError(PERMANENT.format(what=some_of(wrong)))


@contextmanager
def kept() -> Iterator[None]:
    """Around a recovery of a script that goes on where it is: modes stay as it left them."""
    alive = [model for model in (one.model() for one in _switched.values()) if model is not None]
    before = [(model, training_of(model.modules())) for model in alive]
    try:
        yield
    finally:
        for model, modes in before:
            set_training(modes, model.modules())


def _notice(model: torch.nn.Module) -> None:
    if any(one.model() is model for one in _switched.values()):
        return
    for root in (ref() for ref in _protected):
        if root is not None and any(part is model for part in root.modules()):
            return
    words = f"a {type(model).__qualname__} ({frames.line()})"
    _switched[next(_numbers)] = _Switched(weakref.ref(model), words, training_of(model.modules()))
