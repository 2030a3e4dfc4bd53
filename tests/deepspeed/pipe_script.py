"""A training script around DeepSpeed's PipelineEngine that knows nothing of FFTrainer, but for --loop exact.

usage: pipe_script.py --config JSON --result FILE [--steps N] [--stages N] [--loop LOOP] [--tied] [--checkpoint]
                      [--dynamic] [--eval] [--save] [--die "POINT RANK ITERATION" ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import p2p
from deepspeed.utils import RepeatingLoader
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True, help="DeepSpeed's, the JSON itself")
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--stages", type=int, default=2)
parser.add_argument("--loop", default="iterator", choices=("iterator", "own", "epochs", "while", "generator", "exact"))
parser.add_argument("--tied", action="store_true", help="embedding and head share a weight")
parser.add_argument("--checkpoint", action="store_true", help="compute activations again")
parser.add_argument("--dynamic", action="store_true", help="shapes are sent with every message")
parser.add_argument("--eval", action="store_true", help="evaluate after every second step")
parser.add_argument("--save", action="store_true", help="save after every third step, beside the result")
parser.add_argument("--die", nargs="*", default=[], help='"send 1 3": die in the third iteration, after the first send')
parser.add_argument("--local_rank", type=int, default=-1)
args = parser.parse_args()
WORDS, WIDTH, LENGTH = 31, 16, 6


class Embed(torch.nn.Embedding):
    def __init__(self) -> None:
        super().__init__(WORDS, WIDTH)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.GELU(), torch.nn.Linear(32, WIDTH))
        self.drop = torch.nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return x + self.drop(self.inner(x)) * self.scale.to(x.dtype)


def head(layer: Embed, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, layer.weight)


def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def collate(items: list[Any]) -> Any:
    words = torch.stack([item[0] for item in items])
    noise = torch.randint(0, WORDS, words.shape)
    words = torch.where(torch.rand(words.shape) < 0.1, noise, words)
    return words[:, :-1], words[:, 1:]


deepspeed.init_distributed(dist_backend="gloo")
torch.manual_seed(5)
if args.tied:
    first, last = TiedLayerSpec("embed", Embed), TiedLayerSpec("embed", Embed, forward_fn=head)
else:
    first, last = LayerSpec(Embed), LayerSpec(torch.nn.Linear, WIDTH, WORDS)
model = PipelineModule(
    [first, *(LayerSpec(Block) for _ in range(4)), last], num_stages=args.stages, loss_fn=loss_fn,
    partition_method="uniform", activation_checkpoint_interval=int(args.checkpoint), checkpointable_layers=["Block"],
    dynamic_shape=args.dynamic,
)  # fmt: skip
config = json.loads(args.config)
size = config["train_micro_batch_size_per_gpu"]
words = torch.randint(0, WORDS, (48, LENGTH + 1), generator=torch.Generator().manual_seed(1))
data = TensorDataset(words)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
engine, _, _, _ = deepspeed.initialize(
    model=model, optimizer=optimizer, config=config, training_data=data if args.loop == "own" else None,
    collate_fn=collate,
)  # fmt: skip
grid = engine.grid
torch.manual_seed(100 + dist.get_rank())


def loader_of(seed: int) -> DataLoader[Any]:
    sampler = DistributedSampler(data, grid.data_parallel_size, grid.get_data_parallel_rank(), shuffle=True, seed=seed)
    return DataLoader(data, batch_size=size, sampler=sampler, drop_last=True, collate_fn=collate)


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def die_at(point: str, function: Any) -> Any:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        now = f"{point} {dist.get_rank()} {engine.global_steps + 1}"
        if now in args.die and not is_replacement:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


if args.die:
    import ff_core

    is_replacement = ff_core.is_replacement()
    p2p.send, p2p.recv = die_at("send", p2p.send), die_at("recv", p2p.recv)
    type(engine)._bcast_pipe_scalar = die_at("eval", type(engine)._bcast_pipe_scalar)
    type(engine)._aggregate_total_loss = die_at("loss", type(engine)._aggregate_total_loss)
    type(engine)._save_checkpoint = die_at("save", type(engine)._save_checkpoint)

losses: dict[int, float] = {}
scores: dict[int, float] = {}
checks = iter(RepeatingLoader(loader_of(2)))


def after(loss: torch.Tensor) -> None:
    losses[engine.global_steps] = loss.item()
    if args.eval and engine.global_steps % 2 == 0:
        scores[engine.global_steps] = engine.eval_batch(checks).item()
    if args.save and engine.global_steps % 3 == 0:
        engine.save_checkpoint(str(args.result.parent / "saved"))


if args.loop == "exact":
    import ff_deepspeed

    for batches in ff_deepspeed.batches(engine, RepeatingLoader(loader_of(1)), limit=args.steps):
        with ff_deepspeed.iteration():
            after(engine.train_batch(iter(batches)))
elif args.loop == "own":
    for _ in range(args.steps):
        after(engine.train_batch())
elif args.loop == "epochs":
    loader = loader_of(1)
    for _ in range(2):
        feed = iter(RepeatingLoader(loader))
        for _ in range(args.steps // 2):
            after(engine.train_batch(data_iter=feed))
elif args.loop == "while":
    feed = iter(RepeatingLoader(loader_of(1)))
    while engine.global_steps < args.steps:
        after(engine.train_batch(feed))
elif args.loop == "generator":
    feed = endless(loader_of(1))
    for _ in range(args.steps):
        after(engine.train_batch(feed))
else:
    feed = iter(RepeatingLoader(loader_of(1)))
    done = []
    for step in range(args.steps):
        loss = engine.train_batch(feed)
        after(loss)
        done.append(step)
    assert done == list(range(args.steps))

sha = hashlib.sha256()
for _, p in [*engine.module.named_parameters(), *engine.module.named_buffers()]:
    sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
result = {
    "state": sha.hexdigest(), "steps": engine.global_steps, "losses": losses, "scores": scores,
    "random": torch.rand(()).item(), "offset": engine.module.micro_offset,
}  # fmt: skip
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(json.dumps(result))
