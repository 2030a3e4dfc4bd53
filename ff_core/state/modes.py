"""What a script can switch on a model: train or eval mode, which parameters train, and hooks.

    modes = Modes(model)
    saved = modes.save()     # at the end of an iteration: bytes, a few per module
    modes.load(saved)        # after a failure: modes and requires_grad are put back, hooks are compared

A survivor was interrupted anywhere in its script, perhaps between `eval()` and `train()`; a replacement has not yet
done what the script switched on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ff_core.errors import DifferenceError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def training_of(*models: torch.nn.Module) -> bytes:
    """A byte per module of `models`, in torch's order: whether it is in training mode."""
    return bytes(module.training for model in models for module in model.modules())


def set_training(training: bytes, *models: torch.nn.Module) -> None:
    """Put `training_of` the same modules back."""
    modules = (module for model in models for module in model.modules())
    for module, mode in zip(modules, training, strict=True):
        if module.training != bool(mode):
            module.training = bool(mode)


class Modes:
    """The switches of one model (or the chunks of one). Its modules are listed anew each time: they may change."""

    def __init__(self, *models: torch.nn.Module) -> None:
        self._models = models

    def save(self) -> dict[str, bytes]:
        """A byte per module ("training", "hooks") and per parameter ("requires_grad"), in torch's order."""
        modules = [module for model in self._models for module in model.modules()]
        return {
            "training": training_of(*self._models),
            "hooks": bytes(min(255, sum(len(vars(module)[kind]) for kind in _HOOKS)) for module in modules),
            "requires_grad": bytes(p.requires_grad for model in self._models for p in model.parameters()),
        }

    def load(self, saved: dict[str, bytes]) -> None:
        """Put `save()` back. Raises DifferenceError if the model has other modules, parameters or hooks by now."""
        modules = [pair for model in self._models for pair in model.named_modules()]
        parameters = [pair for model in self._models for pair in model.named_parameters()]
        for kind, found in (("training", modules), ("requires_grad", parameters)):
            if len(saved[kind]) != len(found):
                raise DifferenceError(
                    f"the restored version was saved by a model with {len(saved[kind])} "
                    f"{'modules' if kind == 'training' else 'parameters'}, the model here has {len(found)}: the script "
                    "changes its model while it trains, which a replacement cannot repeat"
                )
        set_training(saved["training"], *self._models)
        for (_, parameter), trains in zip(parameters, saved["requires_grad"], strict=True):
            if parameter.requires_grad != bool(trains):
                parameter.requires_grad_(bool(trains))
        now = self.save()["hooks"]
        pairs = zip(modules, saved["hooks"], now, strict=True)
        other = [name or "the model itself" for (name, _), before, after in pairs if before != after]
        if other:
            raise DifferenceError(
                f"hooks on {_some(other)} are not those of the restored version: register hooks before the training "
                "loop and keep them, or remove them in the iteration that registers them"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
