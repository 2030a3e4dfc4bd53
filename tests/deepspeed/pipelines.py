"""Loops around a PipelineEngine of one stage, some of them such that a replacement could not find its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.dataloader import RepeatingLoader

import ff_deepspeed

STEPS = 3
Pairs = tuple[torch.Tensor, torch.Tensor]


def make_engine(case: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    model = PipelineModule(
        [LayerSpec(torch.nn.Linear, 4, 8), LayerSpec(torch.nn.Dropout, 0.1), LayerSpec(torch.nn.Linear, 8, 2)],
        num_stages=1, loss_fn=torch.nn.functional.cross_entropy,
    )  # fmt: skip
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "steps_per_print": 1000000,
        "zero_optimization": {"stage": case.get("stage", 1), "reduce_bucket_size": 1000000, **case.get("zero", {})},
        "ff_failover": {"enabled": True}, **case.get("config", {}),
    }  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config, training_data=data
    )
    return engine


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def through_a_list(engine: Any, loader: Any) -> None:
    batches = list(loader)
    for _ in range(STEPS):
        engine.train_batch(iter(batches[:2]))


def through_new_generators(engine: Any, loader: Any) -> None:
    for _ in range(STEPS):
        engine.train_batch(endless(loader))


def counted_by_a_generator(engine: Any, loader: Any) -> None:
    feed = iter(RepeatingLoader(loader))
    for _ in (step for step in range(STEPS)):
        engine.train_batch(feed)


def called_by_a_library(engine: Any, loader: Any) -> None:
    from unittest.mock import Mock

    library = Mock(side_effect=partial(engine.train_batch, iter(RepeatingLoader(loader))))
    for _ in range(STEPS):
        library()


def own_loader_in_the_exact_loop(engine: Any, loader: Any) -> None:
    for _ in ff_deepspeed.batches(engine, loader, limit=STEPS):
        with ff_deepspeed.iteration():
            engine.train_batch()


def same_iterator_in_the_exact_loop(engine: Any, loader: Any) -> None:
    feed = iter(RepeatingLoader(loader))
    for _ in ff_deepspeed.batches(engine, RepeatingLoader(loader), limit=STEPS):
        with ff_deepspeed.iteration():
            engine.train_batch(feed)


def evaluated_first(engine: Any, loader: Any) -> None:
    engine.eval_batch(iter(RepeatingLoader(loader)))


def exact(engine: Any, loader: Any) -> None:
    for batches in ff_deepspeed.batches(engine, RepeatingLoader(loader), limit=STEPS):
        with ff_deepspeed.iteration():
            engine.train_batch(iter(batches))


def over_a_range(engine: Any, loader: Any) -> None:
    feed = iter(RepeatingLoader(loader))
    for _ in range(STEPS):
        engine.train_batch(feed)


def while_it_lasts(engine: Any, loader: Any) -> None:
    while engine.global_steps < STEPS:
        engine.train_batch()


def run(engine: Any, how: str, make_engine: Callable[..., Any]) -> None:
    """how: the name of a loop above."""
    loop: Callable[[Any, Any], None] = globals()[how]
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    # A script of its own: the loops of whoever runs the cases are none of its.
    exec(compile("loop(engine, loader)", __file__, "exec"), {"__name__": "__main__", **locals()})
