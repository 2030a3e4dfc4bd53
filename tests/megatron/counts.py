"""train_tiny with a weight of the loss that the script counts: see counting.py.

    fftrain run --nproc-per-node 2 --spares 1 counts.py --way generator ... --result out/result.json --ff-failover
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import counting
import record
import torch
import train_tiny
from megatron.core.enums import ModelType
from megatron.training import get_args, pretrain

weight: Callable[[], float]


def forward_step(data_iterator: Any, model: Any) -> Any:
    output, of_loss = train_tiny.forward_step(data_iterator, model)
    return output * weight(), of_loss


def model_provider(*args: Any, **kwargs: Any) -> Any:
    global weight
    weight = counting.made(get_args().way, lambda: get_args().curr_iteration)
    return train_tiny.model_provider(*args, **kwargs)


def extra_args(parser: Any) -> Any:
    train_tiny.extra_args(parser).add_argument("--way", choices=counting.WAYS)
    return parser


if __name__ == "__main__":
    torch.set_num_threads(1)
    with record.recorded(train_tiny.training):
        pretrain(
            train_tiny.datasets, model_provider, ModelType.encoder_or_decoder, forward_step,
            extra_args_provider=extra_args,
        )  # fmt: skip
    torch.distributed.destroy_process_group()
