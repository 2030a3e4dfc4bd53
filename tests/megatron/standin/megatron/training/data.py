"""Batches by consumed samples, as megatron.training's data_samplers order them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import RerunDataIterator, get_rerun_state_machine

from .global_vars import get_args


class _Sampler:
    def __init__(self, total: int, consumed: int) -> None:
        args = get_args()
        self.total, self.consumed_samples, self.micro = total, consumed, args.micro_batch_size
        self.rank = mpu.get_data_parallel_rank()
        self.micro_batch_times_data_parallel_size = self.micro * mpu.get_data_parallel_world_size()

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in range(self.consumed_samples, self.total):
            batch.append(index)
            if len(batch) == self.micro_batch_times_data_parallel_size:
                yield batch[self.rank * self.micro : (self.rank + 1) * self.micro]
                batch = []


def build_pretraining_data_loader(dataset: Any, consumed_samples: int) -> Any:
    if dataset is None:
        return None
    sampler = _Sampler(len(dataset), consumed_samples)
    workers = get_args().num_workers
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )


def build_train_valid_test_data_loaders(build_train_valid_test_datasets_provider: Any) -> tuple[Any, Any, Any]:
    args = get_args()
    if args.iteration > 0 and args.consumed_valid_samples == 0:  # as in Megatron: of checkpoints that do not say it
        args.consumed_valid_samples = args.iteration // args.eval_interval * args.eval_iters * args.global_batch_size
    build = sys.modules["megatron.training.training"].build_pretraining_data_loader  # this function is there, too
    loaders: tuple[Any, Any, Any] = (None, None, None)
    flags = torch.tensor([0, 0, 0], dtype=torch.long, device="cuda")
    if mpu.get_tensor_model_parallel_rank() == 0:
        samples = (args.train_iters * args.global_batch_size, 10_000, args.eval_iters * args.global_batch_size)
        train, valid, test = build_train_valid_test_datasets_provider(samples)
        loaders = (
            build(train, args.consumed_train_samples),
            [build(valid, args.consumed_valid_samples)],
            build(test, 0),
        )
        wanted = [args.train_iters > 0, args.eval_iters > 0, args.eval_iters > 0]
        flags = torch.tensor(wanted, dtype=torch.long, device="cuda")
    torch.distributed.broadcast(flags, 0)
    args.do_train, args.do_valid, args.do_test = (bool(flag) for flag in flags)
    return loaders


def build_train_valid_test_data_iterators(build_train_valid_test_datasets_provider: Any) -> tuple[Any, Any, Any]:
    train, valid, test = build_train_valid_test_data_loaders(build_train_valid_test_datasets_provider)
    if train is None:
        return None, None, None
    return RerunDataIterator(iter(train)), RerunDataIterator(iter(valid[0])), RerunDataIterator(iter(test))


def dummy_train_step(data_iterator: Any) -> None:
    machine = get_rerun_state_machine()
    while machine.should_run_forward_backward(data_iterator):
        for _ in range(get_num_microbatches()):
            next(data_iterator)
