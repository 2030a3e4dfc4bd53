"""TRL's trainers with DeepSpeed, in a script that knows nothing of FFTrainer: a small Llama learns sentences, with
TRL's own metrics in the log, evaluations and checkpoints. TRL need not be installed where the tests run.

usage: trl_trainer.py KIND --deepspeed FILE --result FILE [--steps N] [--packed] [--lora]

KIND: sft, dpo (with a reference model in an engine of its own) or grpo (it generates what it learns from).
--packed: several sentences are one sample.  --lora: only adapters are trained (needs peft)
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
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import deepspeed
import plain
import torch
from accelerate import PartialState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("kind", choices=("sft", "dpo", "grpo"))
parser.add_argument("--deepspeed", required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--steps", type=int, default=10)
for switch in ("--packed", "--lora"):
    parser.add_argument(switch, action="store_true")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
folder = args.result.parent / "trl"

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{n}" for n in range(28))]


def make_tokenizer() -> Any:
    inner = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def sentences(count: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def one() -> str:
        length = int(torch.randint(3, 9, (), generator=generator))
        return " ".join(WORDS[n] for n in torch.randint(4, len(WORDS), (length,), generator=generator).tolist())

    columns = {"sft": ("text",), "dpo": ("prompt", "chosen", "rejected"), "grpo": ("prompt",)}[args.kind]
    return Dataset.from_list([{column: one() for column in columns} for _ in range(count)])


def even_words(completions: list[str], **_: Any) -> list[float]:
    """The reward of each."""
    return [sum(word in WORDS[::2] for word in text.split()) / 8 for text in completions]


def adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


# Left to itself, accelerate takes a machine without a GPU for one process.
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
PartialState(backend="gloo")
kind, of_kind = {
    "sft": (SFTConfig, {"max_length": 16, "packing": args.packed}),
    "dpo": (DPOConfig, {"max_length": 24}),
    "grpo": (GRPOConfig, {"max_completion_length": 6, "num_generations": 2}),
}[args.kind]
arguments = kind(
    output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=args.steps,
    learning_rate=1e-2, bf16=False, use_cpu=True, deepspeed=args.deepspeed, logging_steps=2, eval_strategy="steps",
    accelerator_config={"use_configured_state": True}, eval_steps=3, save_strategy="steps", save_steps=3, report_to=[],
    per_device_eval_batch_size=2, seed=1, disable_tqdm=True, **of_kind,
)  # fmt: skip


def make_model() -> Any:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32, attention_dropout=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


common: dict[str, Any] = {
    "model": make_model(), "args": arguments, "train_dataset": sentences(28, 1), "eval_dataset": sentences(8, 2),
    "processing_class": make_tokenizer(), "peft_config": adapters() if args.lora else None,
}  # fmt: skip
if args.kind == "sft":
    trainer = SFTTrainer(**common)
elif args.kind == "dpo":
    trainer = DPOTrainer(ref_model=None if args.lora else make_model(), **common)
else:
    trainer = GRPOTrainer(reward_funcs=even_words, **common)
trainer.train()


def digest(path: Path) -> Any:
    if path.name == "trainer_state.json":
        return plain.trainer_state(path, folder)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".safetensors" else "there"


found = {
    "steps": trainer.state.global_step,
    "weights": {name: p.float().flatten().tolist() for name, p in trainer.model.named_parameters()},
    "history": plain.timeless(trainer.state.log_history),
    "files": {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
}
trainer.accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{trainer.args.process_index}.json").write_text(json.dumps(found, sort_keys=True))
