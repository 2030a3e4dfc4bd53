"""PyTorch Lightning: a protected training under its DeepSpeedStrategy is refused by name.

`trainer.fit()` gives the engine one method of the LightningModule or another by exchanging `forward` for the time of a
call, and `self.log()` adds up within engine(...). A call that a survivor makes again would run another method, and
count twice. A replacement would have to enter three loops within each other, whose sums no checkpoint has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.errors import UnsupportedError
from ff_core.state import frames
from ff_core.worker import session
from ff_core.worker.hooks import wrap

FIT = (
    "{line}: the training loop is PyTorch Lightning's: after a failure FFTrainer could neither repeat what it did nor "
    "place a replacement into it. Train the LightningModule in a loop of your own: deepspeed.initialize() with a "
    "module whose forward() is its training_step(), and `for batches in ff_deepspeed.batches(engine, loader)` with "
    '`with ff_deepspeed.iteration()` inside. Or set "ff_failover": {{"enabled": false}} and rely on checkpoints'
)


def install() -> None:
    """pytorch_lightning has been imported. Once per process."""
    from pytorch_lightning.strategies import DeepSpeedStrategy

    _install(DeepSpeedStrategy)


def install_in_lightning() -> None:
    """The same package under its other name has been imported. Once per process."""
    from lightning.pytorch.strategies import DeepSpeedStrategy

    _install(DeepSpeedStrategy)


def _install(strategy: type) -> None:
    wrap(strategy, "_initialize_deepspeed_train", _initialize)


def _initialize(original: Callable[..., None], strategy: Any, *args: Any, **kwargs: Any) -> None:
    block = strategy.config.get("ff_failover")
    if session.current() is not None and isinstance(block, dict) and block.get("enabled") is True:
        raise UnsupportedError(FIT.format(line=frames.line()))
    original(strategy, *args, **kwargs)
