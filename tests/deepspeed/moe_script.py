"""A job with mixtures of experts (deepspeed.moe.layer.MoE), spread over expert-parallel ranks.

usage: moe_script.py --config JSON --result FILE [--steps N] [--ep N ...] [--usual] [--frozen] [--save DIR]

--config: DeepSpeed's, the JSON itself.  --ep: expert-parallel size of each layer.  --usual: not the exact loop
--frozen: one expert of the first layer does not train
--save: each third iteration saves a checkpoint, within the iteration
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import small_loop
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from preload import preload

WIDTH, EXPERTS = 16, 4


class Expert(torch.nn.Module):
    """x: (..., WIDTH). Its scale is a buffer, and another one in each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, 32), torch.nn.Linear(32, WIDTH)
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))) * self.scale.to(x.dtype)


class Model(torch.nn.Module):
    """x: (batch, WIDTH), and so is what comes out as the loss' target."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.first, self.drop = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.1)
        self.layers = torch.nn.ModuleList(
            MoE(
                WIDTH, Expert(), num_experts=EXPERTS, ep_size=size, k=1 + number % 2, min_capacity=2,
                noisy_gate_policy=None if number % 2 else "RSample", use_residual=number % 2 == 1,
            )
            for number, size in enumerate(sizes)
        )  # fmt: skip
        self.last = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, extra = self.drop(torch.relu(self.first(x))), x.new_zeros(())
        for layer in self.layers:
            out, balance, _ = layer(h)
            h, extra = h + out, extra + 0.01 * balance
        return (self.last(h) - x).float().square().mean() + extra.float()


def make_engine(arguments: argparse.Namespace) -> Any:
    torch.manual_seed(1)
    model = Model(arguments.ep)
    torch.manual_seed(11 + dist.get_rank())  # experts are others on each rank; DeepSpeed makes those alike that are one
    with torch.no_grad():
        for layer in model.layers:
            for p in layer.deepspeed_moe.experts.parameters():
                p.add_(0.1 * torch.randn_like(p))
    if arguments.frozen:
        model.layers[0].deepspeed_moe.experts.deepspeed_experts[0].requires_grad_(False)
        model.first.bias.requires_grad_(False)
    parameters: Any = [{"params": [p for p in model.parameters() if p.requires_grad], "name": "all"}]
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    groups = split_params_into_different_moe_groups_for_optimizer(parameters)  # their order is that of a set
    optimizer = torch.optim.AdamW(sorted(groups, key=lambda group: str(group["name"])), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=arguments.config)
    with torch.no_grad():  # the same within the ranks that hold an expert, whose index is the expert-parallel rank
        for layer in model.layers:
            place = dist.get_rank(layer.deepspeed_moe.ep_group)
            for number, expert in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
                expert.scale.fill_(1 + 0.1 * place + 0.01 * number)
    torch.manual_seed(100 + dist.get_rank())
    return engine


def main() -> None:
    parser = small_loop.parser()
    parser.add_argument("--ep", type=int, nargs="+", default=[2])
    parser.add_argument("--usual", action="store_true")
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    preload()
    deepspeed.init_distributed()
    engine = make_engine(arguments)
    dtype = next(engine.module.parameters()).dtype
    gas = engine.gradient_accumulation_steps()
    data = torch.randn(8 * gas * arguments.steps, WIDTH)
    losses: dict[str, float] = {}

    def after(mean: torch.Tensor) -> None:
        dist.all_reduce(mean)
        losses[str(engine.global_steps)] = mean.item()
        if arguments.save and engine.global_steps % 3 == 0:
            engine.save_checkpoint(str(arguments.save))

    def micro_step(x: torch.Tensor) -> torch.Tensor:
        loss = engine(x.to(dtype))
        engine.backward(loss)
        engine.step()
        return loss.detach()

    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    small_loop.train(engine, loader, micro_step, after, arguments.usual)
    small_loop.write(arguments.result, engine, random=torch.rand(()).item(), losses=losses)


main()
