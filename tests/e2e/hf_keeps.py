"""Hugging Face's Trainer, with state of the script's own around it: a collate function that draws from generators of
its own and is shared by the evaluations, callbacks that keep an average and make the data harder, losses that count.

usage: hf_keeps.py --deepspeed FILE --result FILE [--workers]

--workers: batches are loaded in processes, which are kept
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import numpy as np
import plain
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--deepspeed", required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--workers", action="store_true")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
noise = np.random.default_rng(5)  # of this module: loading and losses draw from it
level = 0.0


class Samples(Dataset[dict[str, torch.Tensor]]):
    """28 samples: 7 batches of 2 for each of two ranks."""

    def __init__(self) -> None:
        self.difficulty, self.hard = 0.0, False

    def __len__(self) -> int:
        return 28

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, generator=torch.Generator().manual_seed(index)) * (1 + self.difficulty + level)
        return {"x": x * 2 if self.hard else x, "labels": x.sum().sign()}


class Mixing:
    """As data_collator."""

    def __init__(self) -> None:
        self.calls, self.generator = 0, random.Random(9)

    def __call__(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.calls += 1
        drawn = 0.0 if args.workers else float(noise.random())
        x = torch.stack([item["x"] for item in items]) + self.generator.random() + drawn + 0.01 * self.calls
        return {"x": x + random.random(), "labels": torch.stack([item["labels"] for item in items])}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
        self.temperature = 1.0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.temperature *= 0.99
        out = self.layers(x).squeeze(-1) * self.temperature
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class Keeping(TrainerCallback):
    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}
        self.rate = 1.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rate *= 0.9
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = 1e-2 * self.rate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        global level
        samples.difficulty += 0.0 if in_processes else 0.1
        samples.hard = state.global_step > 1 and not in_processes
        level += 0.0 if in_processes else 0.1
        for name, parameter in kwargs["model"].named_parameters():
            kept = self.average.setdefault(name, torch.zeros_like(parameter))
            kept.mul_(0.9).add_(parameter.detach(), alpha=0.1)


class Mine(Trainer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calls, self.last = 0, deque[float](maxlen=3)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        if not model.training:
            return loss
        self.calls += 1
        self.last.append(loss.item())
        return loss * (1 + 0.1 * self.calls + sum(self.last)) * float(noise.random())


in_processes = args.workers
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
PartialState(backend="gloo")
torch.manual_seed(1)
samples, mixing, keeping = Samples(), Mixing(), Keeping()
trainer = Mine(
    model=Net(),
    args=TrainingArguments(
        output_dir=str(args.result.parent / "hf"), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_steps=10, deepspeed=args.deepspeed, accelerator_config={"use_configured_state": True}, logging_steps=1,
        eval_strategy="steps", eval_steps=3, save_strategy="no", report_to=[], seed=1, disable_tqdm=True,
        remove_unused_columns=False, dataloader_num_workers=2 * args.workers,
        dataloader_persistent_workers=args.workers,
    ),
    train_dataset=samples,
    eval_dataset=Samples(),
    data_collator=mixing,
    callbacks=[keeping],
)  # fmt: skip
trainer.train()
found = {
    "weights": {name: p.float().flatten().tolist() for name, p in trainer.model.named_parameters()},
    "history": plain.timeless(trainer.state.log_history),
    "average": {name: kept.flatten().tolist() for name, kept in keeping.average.items()},
    "counts": [trainer.calls, list(trainer.last), mixing.calls, keeping.rate, samples.difficulty],
}
trainer.accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{trainer.args.process_index}.json").write_text(json.dumps(found, sort_keys=True))
