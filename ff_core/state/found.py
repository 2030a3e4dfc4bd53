"""Trained state that nobody has named: schedulers, optimizers, scalers and averages that the script steps by itself.

What a framework's adapter does not know of is still state: a scheduler that is stepped after `engine.step()`, a second
optimizer, an average of the weights. `watch()` notices every such object when it is made, and again when it first
steps outside of the protected step. From then on it is saved with every version and put back after a failure, like an
object given to `ff_core.register_state`.

An object is known by its class and its number among the objects of that class. Numbers follow the order in which the
objects were made; in a replacement the script makes them in the same order. What cannot be saved is refused by name
when it first steps.

| class | noticed by | what is saved |
| --- | --- | --- |
| torch.optim.Optimizer | torch's global step hook | state_dict() and the values of its parameters |
| torch.optim.lr_scheduler.LRScheduler | its step() | state_dict() |
| torch.amp.GradScaler | its update() | state_dict() |
| torch.optim.swa_utils.AveragedModel | its update_parameters() | state_dict() |
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, frames
from ff_core.state.optimizer_state import OptimizerState
from ff_core.units import format_bytes

#: More than this would be encoded by the training thread in every iteration.
MOST_BYTES = 64 << 20

_made: dict[str, weakref.ReferenceType[Any]] = {}  # name -> object, in the order of making
_counts: Counter[str] = Counter()  # class -> how many were made
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_stepped: dict[str, Any] = {}  # name -> what has state_dict() and load_state_dict()
_before: dict[str, bytes] = {}  # name -> its state before the first step, for versions before that
_known: Callable[[], Mapping[str, Any]] = dict  # what the user has registered
_parts: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # optimizer -> whose part it is
_quiet = 1  # > 0: steps are the framework's own, or training has not begun


def watch(known: Callable[[], Mapping[str, Any]]) -> None:
    """Begin to notice what is made. known: name -> object, what is saved anyway. Idempotent."""
    global _known
    _known = known
    if "__new__" in vars(torch.optim.Optimizer):
        return
    from torch.amp.grad_scaler import GradScaler
    from torch.optim.lr_scheduler import LRScheduler
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from torch.optim.swa_utils import AveragedModel

    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: _steps(optimizer))
    _notice_making(torch.optim.Optimizer, None)
    _notice_making(LRScheduler, "step")
    _notice_making(GradScaler, "update")
    _notice_making(AveragedModel, "update_parameters")


def include(name: str, obj: Any, optimizer: torch.optim.Optimizer) -> None:
    """Save `obj` (state_dict, load_state_dict) with every version. Steps of `optimizer` are its own.

    Called by an adapter before training begins, for what it can save better than this module.
    """
    _stepped[name] = obj
    _parts[optimizer] = name


def begin() -> None:
    """Training begins: what steps from now on counts. Raises UnsupportedError if what is saved has too many bytes."""
    global _quiet
    for name, obj in _stepped.items():
        _refuse_if_large(name, len(codec.encode(obj.state_dict(), name)))
    _quiet = min(_quiet, 0)


@contextmanager
def framework_steps() -> Iterator[None]:
    """What steps inside is saved by the adapter."""
    global _quiet
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1


def made() -> list[tuple[str, Any]]:
    """(name, object) of all that were made and are alive."""
    return [(name, obj) for name, obj in ((name, ref()) for name, ref in _made.items()) if obj is not None]


def collect() -> dict[str, Any]:
    """name -> state of everything found so far."""
    return {name: obj.state_dict() for name, obj in _stepped.items()}


def stepped() -> list[Any]:
    """Every object found so far."""
    objects = [obj.optimizer if isinstance(obj, OptimizerState) else obj for obj in _stepped.values()]
    return [*objects, *_parts]


def hyperparameters() -> list[Mapping[str, Any]]:
    """Parameter groups of every optimizer found so far."""
    stepped = [obj.optimizer for obj in _stepped.values() if isinstance(obj, OptimizerState)]
    return [group for optimizer in [*stepped, *_parts] for group in optimizer.param_groups]


def load(states: Mapping[str, Any]) -> None:
    """Put `collect()`'s result back, in a survivor or in a newcomer that has made the same objects.

    Raises FailoverError naming an object that this process has not made.
    """
    for name in states.keys() - _stepped.keys():
        found = _made.get(name)
        obj = None if found is None else found()
        if obj is None:
            raise FailoverError(
                f"the dead rank's script stepped a {name}, this process has not made one before its training loop: "
                "make it before the loop on every start, or register it (ff_core.register_state)"
            )
        _stepped[name] = _state_of(obj, name)
    for name, obj in list(_stepped.items()):
        if name in states:
            obj.load_state_dict(states[name])
        else:  # the version is older than its first step
            obj.load_state_dict(codec.decode(_before[name]))
            del _stepped[name], _before[name]


def expected_bytes(copied: Iterable[torch.Tensor]) -> int:
    """Room that the states of what exists now may need once it steps.

    copied: tensors that are saved anyway. Their optimizer steps within the framework, and needs none.
    """
    places = {tensor.data_ptr() for tensor in copied}
    return sum(_size(obj, places) for obj in (ref() for ref in _made.values()) if obj is not None)


def _size(obj: Any, copied: set[int]) -> int:
    if not isinstance(obj, torch.optim.Optimizer):
        return 1 << 12
    held = [p for group in obj.param_groups for p in group["params"]]
    if obj in _parts or all(p.data_ptr() in copied for p in held):
        return 0  # a part's state is in the scalars from version 0 on
    return min(4 * sum(p.nbytes for p in held), MOST_BYTES) + (1 << 16)


def _notice_making(cls: type, method: str | None) -> None:
    """Have every new object of `cls` noticed, also those that are copied or unpickled, whatever their constructor."""

    def new(kind: type, *args: Any, **kwargs: Any) -> Any:
        self: Any = object.__new__(kind)
        _remember(self)
        _quiet_while_made(kind)
        if method is not None:
            _follow(kind, method)
        return self

    cls.__new__ = new  # type: ignore[method-assign,assignment]


def _remember(obj: Any) -> None:
    kind = _type(obj)
    _counts[kind] += 1
    _names[obj] = name = f"{kind} #{_counts[kind]}"
    _made[name] = weakref.ref(obj)


def _quiet_while_made(cls: Any) -> None:
    """A scheduler steps once while it is made, and makes others that are a part of it."""
    original = cls.__init__
    if getattr(original, "_ff_quiet", False):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with framework_steps():
            original(self, *args, **kwargs)

    init._ff_quiet = True  # type: ignore[attr-defined]
    cls.__init__ = init


def _follow(cls: type, method: str) -> None:
    """Have `cls.method` say that its object steps. A class may bring a method of its own that does not call ours."""
    original = getattr(cls, method)
    if getattr(original, "_ff_followed", False):
        return

    @functools.wraps(original)
    def followed(self: Any, *args: Any, **kwargs: Any) -> Any:
        _steps(self)
        with framework_steps():  # what it steps in turn is a part of it
            return original(self, *args, **kwargs)

    followed._ff_followed = True  # type: ignore[attr-defined]
    setattr(cls, method, followed)


def _steps(obj: Any) -> None:
    if _quiet > 0 or _names.get(obj) in _stepped or obj in _parts:
        return
    if any(obj is known for known in _known().values()):
        return
    name = _names.get(obj)
    if name is None:
        raise UnsupportedError(_refusal(_type(obj), "it was made before FFTrainer was there"))
    state = _state_of(obj, name)
    try:
        before = codec.encode(state.state_dict(), name)
    except UnsupportedError as error:
        raise UnsupportedError(_refusal(name, str(error))) from None
    _refuse_if_large(name, len(before))
    _before[name] = before
    _stepped[name] = state


def _state_of(obj: Any, name: str) -> Any:
    return OptimizerState(obj, name) if isinstance(obj, torch.optim.Optimizer) else obj


def _refuse_if_large(name: str, size: int) -> None:
    if size > MOST_BYTES:
        given, most = format_bytes(size), format_bytes(MOST_BYTES)
        raise UnsupportedError(_refusal(name, f"all of its {given} would be saved in every iteration (at most {most})"))


def _refusal(name: str, reason: str) -> str:
    return (
        f"{frames.line()}: a {name} is stepped, which FFTrainer neither knows nor can save by itself: {reason}. "
        "Register an object that saves all of it: ff_core.register_state(NAME, obj) with state_dict() and "
        "load_state_dict(), before the training loop"
    )


def _type(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"
