"""A job whose ranks share a sample: each has a slice of the sequence, or of the layers' weights.

usage: parallel_script.py LAYOUT --config JSON --result FILE [--steps N] [--size N] [--usual] [--own-loss]

| layout | what the ranks of a group share |
| --- | --- |
| ulysses | the sequence: deepspeed.sequence.layer.DistributedAttention, mpu=parallel_state_sp |
| mesh | the same, with mesh_param=(data, sequence) |
| own-mpu | the same, with an mpu of the script's own, as Megatron-DeepSpeed has |
| hf | the sequence of a Llama of transformers: UlyssesSPAttentionHF |
| tensor | the layers: column and row parallel, with an mpu of the script's own |
| autotp | the layers of a Llama: "tensor_parallel": {"autotp_size": N} in the configuration |

--config: DeepSpeed's, the JSON itself.  --size: ranks in a group.  --usual: not the exact loop
--own-loss: ranks that share a sequence add their losses up outside of the model
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import small_loop
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from deepspeed.sequence.layer import DistributedAttention
from deepspeed.utils import groups
from preload import preload
from torch.distributed.nn.functional import all_reduce as summed
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

# Whole partitions for four ranks: what ZeRO-3 fills up is not initialized, so two trainings differ in it.
WORDS, WIDTH, HEADS, LENGTH, BATCH = 32, 16, 4, 8, 2


class Mpu:
    """As Megatron-DeepSpeed's: groups of neighbours, and of those that have the same place in them."""

    def __init__(self, size: int, is_tensor: bool) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        for start in range(0, world, size):
            ranks = list(range(start, start + size))
            group = dist.new_group(ranks)
            if rank in ranks:
                self.near = group
        for place in range(size):
            ranks = list(range(place, world, size))
            group = dist.new_group(ranks)
            if rank in ranks:
                self.far = group
        self.alone = [dist.new_group([rank]) for rank in range(world)][rank]
        self.tensor = self.near if is_tensor else self.alone
        self.get_data_parallel_group = lambda: self.far
        self.get_data_parallel_rank = lambda: dist.get_rank(self.far)
        self.get_data_parallel_world_size = lambda: self.far.size()
        self.get_model_parallel_group = lambda: self.tensor
        self.get_model_parallel_rank = lambda: dist.get_rank(self.tensor)
        self.get_model_parallel_world_size = lambda: self.tensor.size()
        if not is_tensor:
            self.get_sequence_parallel_group = lambda: self.near
            self.get_sequence_parallel_rank = lambda: dist.get_rank(self.near)
            self.get_sequence_parallel_world_size = lambda: self.near.size()
            self.get_sequence_data_parallel_group = lambda: groups._clone_world_group()
            self.get_sequence_data_parallel_rank = dist.get_rank
            self.get_sequence_data_parallel_world_size = dist.get_world_size


class Ulysses(torch.nn.Module):
    """words, labels, places: (BATCH, LENGTH / size) of whole numbers. Returns the mean over the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WORDS)
        self.drop = torch.nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros(()))
        self.attention: Any = None
        self.group: Any = None

    def share(self, group: Any) -> None:
        self.attention = DistributedAttention(Attention(), group, scatter_idx=2, gather_idx=1)

    def forward(self, words: torch.Tensor, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        h = self.embed(words) + self.places(places)
        q, k, v = (x.unflatten(-1, (HEADS, -1)) for x in self.qkv(h).chunk(3, dim=-1))
        h = h + self.drop(self.attention(q, k, v, 0).flatten(2))
        loss = cross_entropy(self.out(h).float().flatten(0, 1), labels.flatten())
        return loss if self.group is None else summed(loss, group=self.group) / self.group.size()


class Attention(torch.nn.Module):
    """q, k, v: (batch, sequence, heads, width)."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous()


class Copied(torch.autograd.Function):
    """As it is; the gradient is summed over `group`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class Summed(torch.autograd.Function):
    """Summed over `group`; the gradient is as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


class Tensor(torch.nn.Module):
    """As Ulysses' without attention: `up` has a part of the columns, `down` of the rows."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.group = group
        self.embed, self.out = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Linear(WIDTH, WORDS)
        self.up = torch.nn.Linear(WIDTH, 32 // group.size())
        self.down = torch.nn.Linear(32 // group.size(), WIDTH, bias=False)
        with torch.random.fork_rng():
            torch.manual_seed(7 + dist.get_rank(group))
            for p in (self.up.weight, self.up.bias, self.down.weight):
                torch.nn.init.normal_(p, std=0.1)
                p.model_parallel = True

    def forward(self, words: torch.Tensor, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        h = self.embed(words)
        h = h + Summed.apply(self.down(torch.relu(self.up(Copied.apply(h, self.group)))), self.group)
        return cross_entropy(self.out(h).float().flatten(0, 1), labels.flatten())


class Llama(torch.nn.Module):
    """Of transformers. group: that shares the sequence; None: each has it all."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}
        config = LlamaConfig(vocab_size=32, num_key_value_heads=HEADS, max_position_embeddings=LENGTH, **sizes)
        config._attn_implementation = "sdpa"
        self.llama = LlamaForCausalLM(config)
        self.group: Any = None

    @property
    def config(self) -> Any:
        return self.llama.config

    def forward(self, words: torch.Tensor, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        logits = self.llama(input_ids=words, position_ids=places, use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return loss if self.group is None else summed(loss, group=self.group) / self.group.size()


def shares_sequence(layout: str) -> bool:
    return layout not in ("tensor", "autotp")


def make_engine(arguments: argparse.Namespace) -> Any:
    layout, size, given = arguments.layout, arguments.size, {}
    torch.manual_seed(1)
    if layout in ("hf", "autotp"):
        model: Any = Llama()
        if layout == "hf":
            from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

            given["mpu"] = UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", size, BATCH)
    elif layout == "tensor":
        given["mpu"] = Mpu(size, is_tensor=True)
        model = Tensor(given["mpu"].near)
    else:
        model = Ulysses()
    if layout == "ulysses":
        parallel_state_sp.initialize_sequence_parallel(size)
        given["mpu"] = parallel_state_sp
    elif layout == "own-mpu":
        given["mpu"] = Mpu(size, is_tensor=False)
    elif layout == "mesh":
        given["mesh_param"] = (dist.get_world_size() // size, size)
    elif layout == "autotp":
        arguments.config["tensor_parallel"] = {"autotp_size": size}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=arguments.config, **given
    )
    if isinstance(model, Ulysses):
        model.share(groups._get_sequence_parallel_group())
    if shares_sequence(layout) and not arguments.own_loss:
        model.group = groups._get_sequence_parallel_group()
    return engine


def main() -> None:
    parser = small_loop.parser()
    layouts = ("ulysses", "mesh", "own-mpu", "hf", "tensor", "autotp")
    parser.add_argument("layout", choices=layouts)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--usual", action="store_true")
    parser.add_argument("--own-loss", action="store_true")
    arguments = parser.parse_args()
    preload()
    deepspeed.init_distributed()
    engine = make_engine(arguments)
    rank, size = dist.get_rank(), arguments.size
    has_slice = shares_sequence(arguments.layout)
    # Dropout: tensor-parallel ranks have the same sample, and must drop the same of it.
    torch.manual_seed(100 + (rank if has_slice else rank // size))
    gas = engine.gradient_accumulation_steps()
    count = BATCH * gas * arguments.steps * (dist.get_world_size() // size)
    words = torch.randint(0, WORDS, (count, LENGTH + 1), generator=torch.Generator().manual_seed(2))
    # All ranks of a group take the same samples, and then each its part.
    sampler: Any = torch.utils.data.DistributedSampler(words, dist.get_world_size() // size, rank // size)
    loader: Any = torch.utils.data.DataLoader(words, batch_size=BATCH, sampler=sampler)
    losses: dict[str, float] = {}

    def micro_step(batch: torch.Tensor) -> torch.Tensor:
        inputs = batch[:, :-1], batch[:, 1:], torch.arange(LENGTH).expand(len(batch), -1)
        if has_slice:
            inputs = tuple(x.chunk(size, dim=1)[rank % size].contiguous() for x in inputs)
        loss = engine(*inputs)
        if arguments.own_loss:
            loss = summed(loss, group=groups._get_sequence_parallel_group()) / size
        engine.backward(loss)
        engine.step()
        return loss.detach()

    def after(mean: torch.Tensor) -> None:
        dist.all_reduce(mean)
        losses[str(engine.global_steps)] = mean.item()

    small_loop.train(engine, loader, micro_step, after, arguments.usual)
    small_loop.write(arguments.result, engine, random=torch.rand(()).item(), losses=losses)


main()
