"""A small Llama trained by Hugging Face's Trainer under a DeepSpeed configuration of the kind that people share.

usage: shipped.py --deepspeed FILE --precision {fp32,bf16,fp16} --result FILE [--steps N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

PRECISIONS = ("fp32", "bf16", "fp16")


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens, always the same."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def make_trainer(file: str, precision: str, steps: int, folder: Path) -> Any:
    """As a user writes it, with arguments first and the model after them: then ZeRO-3 partitions it as it is made."""
    from accelerate import PartialState
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    # Left to itself, accelerate takes a machine without a GPU for one process.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=steps,
        learning_rate=1e-2,
        warmup_steps=2,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=True,
        gradient_checkpointing=True,
        deepspeed=file,
        accelerator_config={"use_configured_state": True},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=1,
        disable_tqdm=True,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, attention_dropout=0.1,
        )
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Sentences())


def digest(trainer: Any) -> str:
    """Of the whole weights."""
    import deepspeed

    sha = hashlib.sha256()
    parameters = list(trainer.model.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        for p in parameters:
            sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    trainer = make_trainer(arguments.deepspeed, arguments.precision, arguments.steps, arguments.result.parent / "hf")
    trainer.train()
    history = [{k: v for k, v in entry.items() if k in ("loss", "step", "learning_rate", "grad_norm")}
               for entry in trainer.state.log_history]  # fmt: skip
    losses = {str(entry["step"]): entry["loss"] for entry in history if "loss" in entry}
    found = {"weights": digest(trainer), "history": history, "skipped": trainer.model_wrapped.skipped_steps}
    file = arguments.result.with_suffix(f".rank{trainer.args.process_index}.json")
    trainer.accelerator.wait_for_everyone()
    file.write_text(json.dumps({**found, "losses": losses}, sort_keys=True))


if __name__ == "__main__":
    main()
