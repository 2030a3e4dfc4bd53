"""Arguments and timers of the process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import Timers

_args: argparse.Namespace | None = None
_timers: Timers | None = None


def get_args() -> argparse.Namespace:
    assert _args is not None
    return _args


def get_timers() -> Timers:
    assert _timers is not None
    return _timers


def parse_args(extra_args_provider: Callable[[Any], Any] | None = None, ignore_unknown_args: bool = False) -> Any:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    whole = {
        "tensor-model-parallel-size": 1, "pipeline-model-parallel-size": 1, "context-parallel-size": 1,
        "expert-model-parallel-size": 1, "num-layers-per-virtual-pipeline-stage": None, "num-experts": None,
        "num-layers": 4, "hidden-size": 32, "num-attention-heads": 4, "seq-length": 16, "padded-vocab-size": 64,
        "micro-batch-size": 2, "global-batch-size": 8, "train-iters": 10, "train-samples": None, "log-interval": 1,
        "eval-interval": 1000, "eval-iters": 0, "save-interval": None, "exit-interval": None, "num-workers": 0,
        "seed": 1234, "ddp-bucket-size": None, "num-distributed-optimizer-instances": 1,
        "save-retain-interval": None, "non-persistent-save-interval": None,
    }  # fmt: skip
    for name, default in whole.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in (
        "bf16", "fp16", "use-distributed-optimizer", "overlap-grad-reduce", "overlap-param-gather",
        "align-param-gather", "disable-gloo-process-groups", "async-save", "inprocess-restart", "enable-ft-package",
        "use-megatron-fsdp", "use-torch-fsdp2", "optimizer-cpu-offload", "use-precision-aware-optimizer", "skip-train",
        "use-persistent-ckpt-worker", "ckpt-fully-parallel-save", "ckpt-assume-constant-structure",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--iterations-to-skip", nargs="+", type=int, default=[])
    parser.add_argument("--rampup-batch-size", nargs=3, default=None)
    parser.add_argument("--save")
    parser.add_argument("--load")
    parser.add_argument("--ckpt-format", default="torch")
    parser.add_argument("--non-persistent-ckpt-type", choices=("global", "local"))
    parser.add_argument("--non-persistent-global-ckpt-dir")
    parser.add_argument("--dataloader-type", default="single")
    parser.add_argument("--moe-token-dispatcher-type", default="alltoall")
    parser.add_argument("--moe-z-loss-coeff", type=float, default=1e-3)
    parser.add_argument("--moe-router-load-balancing-type", nargs="+", default=["aux_loss", "global_aux_loss"])
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--lr", type=float, default=1e-2)
    if extra_args_provider is not None:
        parser = extra_args_provider(parser)
    args = parser.parse_known_args()[0] if ignore_unknown_args else parser.parse_args()
    args.rank, args.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    args.iteration = args.consumed_train_samples = args.skipped_train_samples = args.consumed_valid_samples = 0
    model_parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    args.data_parallel_size = args.world_size // model_parallel
    args.params_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    args.enable_gloo_process_groups = not args.disable_gloo_process_groups
    chunk = args.num_layers_per_virtual_pipeline_stage
    args.virtual_pipeline_model_parallel_size = (
        None if chunk is None else args.num_layers // args.pipeline_model_parallel_size // chunk
    )
    return args


def set_global_variables(args: argparse.Namespace) -> None:
    global _args, _timers
    _args, _timers = args, Timers(0, "minmax")
