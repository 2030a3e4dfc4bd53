"""Hugging Face's Trainer with DeepSpeed, in a script that knows nothing of FFTrainer: epochs that do not divide evenly,
evaluations, checkpoints, and a callback and a subclass that count.

usage: hf_trainer.py --deepspeed FILE --result FILE [--own-loop]

--own-loop: a subclass replaces a part of the loop
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--deepspeed", required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--own-loop", action="store_true")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
folder = args.result.parent / "hf"


class Samples(Dataset[dict[str, torch.Tensor]]):
    """28 samples: 7 batches of 2 for each of two ranks, so the last accumulation of an epoch is shorter."""

    def __len__(self) -> int:
        return 28

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return {"x": x, "labels": x.sum().sign()}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        out = self.layers(x).squeeze(-1)
        return {"logits": out} if labels is None else {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class Counting(TrainerCallback):
    def __init__(self) -> None:
        self.evaluations: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluations.append(kwargs["metrics"]["eval_loss"])


class Mine(Trainer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: defaultdict[int, list[str]] = defaultdict(list)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses[self.state.global_step + 1].append(loss.item().hex())
        return loss


class OwnLoop(Mine):
    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        return super()._run_epoch(*args, **kwargs)


# Left to itself, accelerate takes a machine without a GPU for one process.
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
PartialState(backend="gloo")
torch.manual_seed(1)
counting = Counting()
trainer = (OwnLoop if args.own_loop else Mine)(
    model=Net(),
    args=TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=10,
        learning_rate=1e-2,
        deepspeed=args.deepspeed,
        accelerator_config={"use_configured_state": True},
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        report_to=[],
        seed=1,
        disable_tqdm=True,
    ),
    train_dataset=Samples(),
    eval_dataset=Samples(),
    callbacks=[counting],
)
trainer.train()

_OF_TIME = ("runtime", "per_second")


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(_OF_TIME)}


def digest(path: Path) -> Any:
    if path.name == "trainer_state.json":
        state = json.loads(path.read_text())
        return {**state, "log_history": [timeless(entry) for entry in state["log_history"]]}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in (".safetensors", ".pth") else "there"


rank = trainer.args.process_index
found = {
    "steps": trainer.state.global_step,
    "weights": {name: p.float().flatten().tolist() for name, p in trainer.model.named_parameters()},
    "history": [timeless(entry) for entry in trainer.state.log_history],
    "evaluations": counting.evaluations,
    "losses": dict(trainer.losses),
    "files": {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
}
trainer.accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{rank}.json").write_text(json.dumps(found, sort_keys=True))
