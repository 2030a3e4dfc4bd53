"""What a script can switch on a model: train or eval mode, which parameters train, and hooks.

    modes = Modes(Members(model))
    saved = modes.save()     # at the end of an iteration: bytes, a few per module
    modes.load(saved)        # after a failure: modes and requires_grad are put back, hooks are compared

A survivor was interrupted anywhere in its script, perhaps between `eval()` and `train()`; a replacement has not yet
done what the script switched on its way.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence, Sized
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ff_core.errors import DifferenceError
from ff_core.state.members import Members
from ff_core.state.words import some_of

log = logging.getLogger("ff_core")

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HOOKS = attrgetter(*_KINDS)
_OF_PARAMETER = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")
_MOST = 255  # a byte per count
_TRAINING = attrgetter("training")
_REQUIRES_GRAD = attrgetter("requires_grad")


def training_of(modules: Iterable[torch.nn.Module]) -> bytes:
    """A byte per module: whether it is in training mode."""
    return bytes(map(_TRAINING, modules))


def set_training(training: bytes, modules: Iterable[torch.nn.Module]) -> None:
    """Put `training_of` the same modules back."""
    for module, mode in zip(modules, training, strict=True):
        if module.training != bool(mode):
            module.training = bool(mode)


def trained(parameters: Iterable[torch.Tensor]) -> bytes:
    """A byte per parameter: its requires_grad."""
    return bytes(map(_REQUIRES_GRAD, parameters))


def set_trained(trains: bytes, parameters: Iterable[torch.Tensor]) -> None:
    """Put `trained` of the same parameters back."""
    for parameter, value in zip(parameters, trains, strict=True):
        if parameter.requires_grad != bool(value):
            parameter.requires_grad_(bool(value))


REPLACED = (
    "the script has replaced {what} of its model while it trains. A replacement of a dead rank has not done that, and "
    "would compute with what was there before the loop. Make both before the loop, and let the model's forward choose "
    "by an attribute of the model: such a number or flag is saved with every version"
)
_CRC = 4  # bytes


class Modes:
    """The switches of one model. members: whoever calls save() has looked at them.

    uncounted: hooks on the model itself that a framework removes by itself.
    """

    def __init__(self, members: Members, uncounted: Sequence[RemovableHandle] = ()) -> None:
        self._members = members
        self._uncounted = uncounted
        self._listed: list[torch.nn.Module] = []
        self._what = self._first = b""  # what the modules are; when this was asked first
        self._said = False

    def save(self) -> dict[str, Any]:
        """Per module a byte ("training") and four ("hooks", and "what" it is), per parameter one ("requires_grad"), in
        torch's order.

        "parameter_hooks": of each kind, a byte per parameter.
        """
        modules = self._members.modules
        parameters = [parameter for _, parameter in self._members.parameters]
        return {
            "what": self._what_they_are(modules),
            "training": training_of(modules),
            "hooks": self._hooks(modules),
            "requires_grad": trained(parameters),
            "parameter_hooks": _hooks_on(parameters),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Put `save()` back. Raises DifferenceError if the model has other modules, parameters or hooks by now."""
        self._members.look()
        modules = list(self._members.model.named_modules())
        parameters = list(self._members.model.named_parameters())
        for kind, found in (("training", modules), ("requires_grad", parameters)):
            if len(saved[kind]) != len(found):
                raise DifferenceError(
                    f"the restored version was saved by a model with {len(saved[kind])} "
                    f"{'modules' if kind == 'training' else 'parameters'}, the model here has {len(found)}: the script "
                    "changes its model while it trains, which a replacement cannot repeat"
                )
        other = _differing(modules, saved["what"], self._what_they_are([module for _, module in modules]))
        if other:
            raise DifferenceError(REPLACED.format(what=some_of(other)))
        set_training(saved["training"], [module for _, module in modules])
        set_trained(saved["requires_grad"], [parameter for _, parameter in parameters])
        of_modules = self._hooks([module for _, module in modules])
        of_parameters = _hooks_on([parameter for _, parameter in parameters])
        other = [name or "the model itself" for name in _differing(modules, saved["hooks"], of_modules)]
        for before, live in zip(saved["parameter_hooks"], of_parameters, strict=True):
            other += _differing(parameters, before, live)
        if other:
            raise DifferenceError(
                f"hooks on {some_of(other)} are not those of the restored version: register hooks before the training "
                "loop and keep them, or remove them in the iteration that registers them"
            )

    def _what_they_are(self, modules: list[torch.nn.Module]) -> bytes:
        """A checksum per module. It is made when the model has other modules than before, and a change is said."""
        if modules is self._listed:
            return self._what
        are_same = len(modules) == len(self._listed) and all(map(is_, modules, self._listed))
        self._listed = modules
        if not are_same:
            self._what = b"".join(map(_what_it_is, modules))
            self._first = self._first or self._what
            if self._what != self._first and not self._said:
                self._said = True
                named = list(self._members.model.named_modules()) if len(self._what) == len(self._first) else []
                what = some_of(_differing(named, self._first, self._what)) if named else "modules"
                log.warning("%s", REPLACED.format(what=what))
        return self._what

    def _hooks(self, modules: Sequence[torch.nn.Module]) -> bytes:
        """How many hooks of each kind the first module has, then the second, ..."""
        held: list[Any] = list(chain.from_iterable(map(_HOOKS, modules)))
        for handle in self._uncounted:
            owner = handle.hooks_dict_ref()
            for place, hooks in enumerate(held[: len(_KINDS)]):
                if owner is not None and hooks is owner:
                    held[place] = [number for number in owner if number != handle.id]
        return _counts(held)


def _hooks_on(parameters: Sequence[torch.Tensor]) -> list[bytes]:
    return [_counts(list(map(held, parameters))) for held in _OF_PARAMETER]


def _what_it_is(module: torch.nn.Module) -> bytes:
    """Its class, and what of torch's own modules is no rate: a rate may change, and is saved."""
    kind, held = type(module), vars(module)
    names = [name for name in getattr(kind, "__constants__", ()) if type(held.get(name)) in (int, str, bool, tuple)]
    text = [kind.__module__, kind.__qualname__, *((name, held[name]) for name in names)]
    return zlib.crc32(repr(text).encode()).to_bytes(_CRC, "little")


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """The hooks on a module itself and on its own parameters."""
    own = [hook for hooks in _HOOKS(module) if hooks for hook in hooks.values()]
    parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    return [*own, *chain.from_iterable(map(hooks_of_tensor, parameters))]


def hooks_of_tensor(tensor: torch.Tensor) -> list[Any]:
    """Those on its gradient."""
    return [hook for hooks in (of(tensor) for of in _OF_PARAMETER) if hooks for hook in hooks.values()]


def _differing(named: Sequence[tuple[str, object]], before: bytes, now: bytes) -> list[str]:
    """Names of those that have other bytes now. Each has as many."""
    size = len(before) // max(len(named), 1)
    places = range(0, len(before), max(size, 1))
    pairs = zip(named, places, strict=True)
    return [name for (name, _), place in pairs if before[place : place + size] != now[place : place + size]]


def _counts(held: Sequence[Sized | None]) -> bytes:
    """None: there has never been one."""
    if None in held:
        held = [hooks or () for hooks in held]
    counts = list(map(len, held))  # type: ignore[arg-type]
    try:
        return bytes(counts)
    except ValueError:
        return bytes(min(count, _MOST) for count in counts)
