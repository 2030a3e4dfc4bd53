"""Hugging Face's Trainer with DeepSpeed, in a script that knows nothing of FFTrainer: epochs that do not divide evenly,
evaluations, checkpoints, and a callback and a subclass that count.

usage: hf_trainer.py --deepspeed FILE --result FILE [--steps N] [--resume DIR] [--best] [--json-optimizer] [--own-loop]
    [--own-batches]

--resume: from this checkpoint.  --best: the best weights are loaded at the end.  --json-optimizer: optimizer and
schedule stand in the DeepSpeed configuration.  --own-loop: a subclass replaces a part of the loop.  --own-batches: the
batches come from no DataLoader
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
import plain
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--deepspeed", required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--resume")
for switch in ("--best", "--json-optimizer", "--own-loop", "--own-batches"):
    parser.add_argument(switch, action="store_true")
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
        self.seen = {"epochs": 0, "substeps": 0, "steps": 0, "logs": 0, "saves": 0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began_at = state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["epochs"] += 1

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["substeps"] += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["steps"] += 1

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["logs"] += 1

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["saves"] += 1

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


class OwnBatches(Mine):
    def get_train_dataloader(self) -> Any:
        samples = [Samples()[number] for number in range(28)]
        pairs = [samples[number : number + 2] for number in range(0, 28, 2)]
        return [{key: torch.stack([sample[key] for sample in pair]) for key in pair[0]} for pair in pairs]


class OwnLoop(Mine):
    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        return super()._run_epoch(*args, **kwargs)


# Left to itself, accelerate takes a machine without a GPU for one process.
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
PartialState(backend="gloo")
torch.manual_seed(1)
counting = Counting()
settings = json.loads(Path(args.deepspeed).read_text())
if args.json_optimizer:
    auto = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    settings["optimizer"] = {"type": "AdamW", "params": {**auto, "torch_adam": True}}
    warmup = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
    settings["scheduler"] = {"type": "WarmupDecayLR", "params": warmup}
trainer = (OwnLoop if args.own_loop else OwnBatches if args.own_batches else Mine)(
    model=Net(),
    args=TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=args.steps,
        learning_rate=1e-2,
        deepspeed=settings if args.json_optimizer else args.deepspeed,
        accelerator_config={"use_configured_state": True},
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        load_best_model_at_end=args.best,
        report_to=[],
        seed=1,
        disable_tqdm=True,
    ),
    train_dataset=Samples(),
    eval_dataset=Samples(),
    callbacks=[counting],
)
trainer.train(resume_from_checkpoint=args.resume)


def digest(path: Path) -> Any:
    if path.name == "trainer_state.json":
        return plain.trainer_state(path, folder)
    if path.suffix in (".pt", ".pth"):
        return plain.digest(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".safetensors" else "there"


rank = trainer.args.process_index
found = {
    "steps": trainer.state.global_step,
    "weights": {name: p.float().flatten().tolist() for name, p in trainer.model.named_parameters()},
    "history": plain.timeless(trainer.state.log_history),
    "evaluations": counting.evaluations,
    "callback": [counting.seen, counting.began_at],
    "losses": dict(trainer.losses),
    "files": {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
}
trainer.accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{rank}.json").write_text(json.dumps(found, sort_keys=True))
