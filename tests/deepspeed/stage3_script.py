"""A ZeRO-3 job with what such jobs do: a model made under zero.Init, frozen layers, gathered parameters, saves.

--result FILE       result.json becomes result.rank0.json, ...: hashes, and losses of the steps it has seen
--zero-init         the model is made under deepspeed.zero.Init; every rank has a seed of its own then
--frozen            half of the model does not train, and only rank 0 knows its values
--gather            each iteration looks at a whole parameter
--save DIR          each third iteration saves a checkpoint and 16-bit weights, within the iteration
--load DIR          begins with the checkpoint there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist

import ff_deepspeed


class Model(torch.nn.Module):
    """in and out: (batch, 128). Its matrices are larger than what an init journal keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(128, 256)
        self.base = torch.nn.Linear(256, 256)
        self.drop = torch.nn.Dropout(0.1)
        self.last = torch.nn.Linear(256, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(torch.relu(self.first(x)))
        return self.last(h + self.base(h))


def make_engine(arguments: argparse.Namespace, config: dict[str, Any]) -> Any:
    deepspeed.init_distributed()
    torch.manual_seed(1 + (dist.get_rank() if arguments.zero_init else 0))
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=arguments.zero_init):
        model = Model()
    if arguments.frozen:
        model.base.requires_grad_(False)
        with deepspeed.zero.GatheredParameters(list(model.base.parameters()), modifier_rank=0):
            if dist.get_rank() == 0:
                with torch.no_grad():
                    model.base.weight.mul_(0.5)
    optimizer = None if "optimizer" in config else torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, model_parameters=list(model.parameters()), config=config
    )
    return engine


def digest(tensors: list[torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    for flag in ("--zero-init", "--frozen", "--gather"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    arguments = parser.parse_args()
    engine = make_engine(arguments, json.loads(arguments.config.read_text()))
    if arguments.load:
        assert engine.load_checkpoint(str(arguments.load))[0] is not None
    torch.manual_seed(100 + dist.get_rank())
    dtype = next(engine.module.parameters()).dtype
    data = torch.randn(2 * arguments.steps * engine.gradient_accumulation_steps(), 128, dtype=torch.float32).to(dtype)
    losses: dict[str, float] = {}
    for batches in ff_deepspeed.batches(engine, torch.utils.data.DataLoader(data, batch_size=2)):
        with ff_deepspeed.iteration():
            mean = torch.zeros((), device=engine.device)
            for x in batches:
                x = x.to(engine.device)
                loss = (engine(x) - x).float().square().mean()
                if arguments.gather:
                    with deepspeed.zero.GatheredParameters(engine.module.last.weight):
                        mean += engine.module.last.weight.detach().float().abs().max()
                engine.backward(loss)
                engine.step()
                mean += loss.detach()
            dist.all_reduce(mean)
            losses[str(engine.global_steps)] = mean.item()
            if arguments.save and engine.global_steps % 3 == 0:
                engine.save_checkpoint(str(arguments.save))
                engine.save_16bit_model(str(arguments.save), f"weights{engine.global_steps}.bin")
    masters = engine.optimizer.fp32_partitioned_groups_flat
    state = [v for m in masters for v in engine.optimizer.optimizer.state[m].values() if torch.is_tensor(v)]
    partitions = [p.ds_tensor for p in engine.module.parameters()]
    result: dict[str, Any] = {"optimizer": digest([*masters, *state]), "partitions": digest(partitions)}
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        result["parameters"] = digest(list(engine.module.parameters()))
    result |= {"random": digest([torch.get_rng_state()]), "losses": losses}
    file = arguments.result.with_suffix(f".rank{dist.get_rank()}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    dist.barrier()


main()
