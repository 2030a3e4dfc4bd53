"""A LightningModule and DeepSpeed, in a script that knows nothing of FFTrainer, or but two lines of it. PyTorch
Lightning need not be installed where the tests run.

usage: lightning_fit.py --config FILE --result FILE [--own-loop]

--config: DeepSpeed's.  --own-loop: not trainer.fit(), but deepspeed.initialize() and batches(), as the refusal says
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--own-loop", action="store_true")
args = parser.parse_args()


class OnCPU(DeepSpeedStrategy):  # type: ignore[misc]
    """DeepSpeedStrategy wants GPUs, in these two methods only."""

    def setup_environment(self) -> None:
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")


class Net(pl.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class WithLoss(nn.Module):
    """engine(batch, number) is the module's training_step."""

    def __init__(self, inner: Net) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Any, number: int) -> torch.Tensor:
        return self.inner.training_step(batch, number)


def fit() -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy=OnCPU(config=settings),
        max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=2, shuffle=True))


def own_loop() -> None:
    import ff_deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    config = {**settings, "gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 2}
    engine, *_ = deepspeed.initialize(model=WithLoss(model), optimizer=model.configure_optimizers(), config=config)
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, shuffle=True))
    for _ in range(2):
        for batches in ff_deepspeed.batches(engine, loader):
            with ff_deepspeed.iteration():
                for number, batch in enumerate(batches):
                    engine.backward(engine(batch, number))
                    engine.step()


settings = {name: value for name, value in json.loads(args.config.read_text()).items() if value != "auto"}
pl.seed_everything(1)
data = TensorDataset(torch.randn(28, 8), torch.randn(28, 1))
model = Net()
own_loop() if args.own_loop else fit()
found = {name: p.float().flatten().tolist() for name, p in model.named_parameters()}
args.result.with_suffix(f".rank{os.environ['RANK']}.json").write_text(json.dumps(found))
