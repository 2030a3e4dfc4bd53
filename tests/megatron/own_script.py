"""A loop of a script's own on megatron-core, without megatron.training: the workload of ff_megatron.protect()'s tests.

    torchrun --nproc-per-node 2 own_script.py --result out/result.json
    fftrain run --nproc-per-node 2 --spares 1 own_script.py --result out/result.json

Writes out/result.rank<R>.json. Without `fftrain run` it trains plainly: the reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
sys.path.insert(0, str(Path(__file__).resolve().parent))
import counting  # noqa: E402
import cuda_on_cpu  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

import ff_megatron  # noqa: E402

LENGTH, VOCABULARY, MICRO, COUNT = 8, 32, 2, 2  # of a sequence; words; sequences; micro-batches an iteration and rank


def micro_batches(start: int) -> Iterator[torch.Tensor]:
    """This rank's, from number `start` on."""
    of, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    for number in range(start, 10_000):
        generator = torch.Generator().manual_seed(number * of + rank)
        yield torch.randint(0, VOCABULARY, (MICRO, LENGTH + 1), generator=generator)


class Mixed:
    """Noise as the loop wants it by then. It makes its next micro-batch ahead, and others draw from its generator."""

    def __init__(self) -> None:
        self.stream, self.share, self.generator, self.next = micro_batches(0), 0.5, random.Random(9), None
        self.given: list[int] = []

    def __iter__(self) -> Mixed:
        return self

    def __next__(self) -> torch.Tensor:
        item = self.make() if self.next is None else self.next
        self.next = self.make()
        self.given.append(int(item.sum()))
        return item

    def make(self) -> torch.Tensor:
        noise = self.share * self.generator.random() + np.random.rand()  # its own, and of the process
        return (next(self.stream) + int(VOCABULARY * noise)) % VOCABULARY


def build(words: argparse.Namespace) -> tuple[Any, Any, Any]:
    half = {"bf16": True, "params_dtype": torch.bfloat16} if words.bf16 else {"params_dtype": torch.float32}
    config = TransformerConfig(
        num_layers=2, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True, attention_dropout=0.1,
        hidden_dropout=0.1, gradient_accumulation_fusion=False, persist_layer_norm=False, bias_dropout_fusion=False,
        pipeline_model_parallel_size=words.stages, pipeline_dtype=half["params_dtype"],
        deallocate_pipeline_outputs=True, fp8=words.fp8, **half,
    )  # fmt: skip
    first = parallel_state.is_pipeline_first_stage()
    model: Any = GPTModel(
        config, get_gpt_layer_local_spec(), VOCABULARY, LENGTH, pre_process=first,
        post_process=parallel_state.is_pipeline_last_stage(), share_embeddings_and_output_weights=False,
    )  # fmt: skip
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=True, overlap_grad_reduce=words.overlap, overlap_param_gather=words.overlap,
        grad_reduce_in_fp32=words.bf16, bucket_size=2000,
    )  # fmt: skip
    chunk = DistributedDataParallel(config, ddp, Float16Module(config, model) if words.bf16 else model)
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-2, min_lr=1e-4, weight_decay=0.01, clip_grad=1.0, use_distributed_optimizer=True,
        overlap_param_gather=words.overlap, bf16=words.bf16, params_dtype=half["params_dtype"],
    )  # fmt: skip
    optimizer = get_megatron_optimizer(settings, [chunk])
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=1e-2, min_lr=1e-4, lr_warmup_steps=8, lr_decay_steps=200,
        lr_decay_style="cosine", start_wd=0.01, end_wd=0.1, wd_incr_steps=200, wd_incr_style="linear",
    )  # fmt: skip
    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finalize_model_grads
    if words.overlap:
        config.no_sync_func = chunk.no_sync
    return chunk, optimizer, scheduler


def loss_of(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = output.float().mean()
    return loss, {"loss": loss.detach()}


def forward(data: Any, model: Any, weight: float) -> Any:
    text = next(data)
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    positions = torch.arange(LENGTH).unsqueeze(0).expand_as(tokens)
    mask = torch.ones(1, 1, LENGTH, LENGTH).tril() < 0.5
    return model(tokens, positions, mask, labels=labels) * weight, loss_of


def digest(tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--fp8", help="which is refused")
    parser.add_argument("--make-data", action="store_true", help="by a function, which can begin anywhere")
    parser.add_argument("--mixed", action="store_true", help="data that depend on what the loop and others do")
    parser.add_argument("--way", choices=counting.WAYS, help="in which the script counts: see counting.py")
    parser.add_argument("--loops", type=int, default=1, help="of ten iterations")
    parser.add_argument("--breaks", action="store_true", help="leave loops after seven iterations")
    parser.add_argument("--die", type=int, nargs=2, help="a rank, and behind which loop it is killed, once")
    parser.add_argument("--skip", type=int, help="an iteration without a step, agreed on by all ranks")
    parser.add_argument("--forget-data", action="store_true", help="protect() is not told of it")
    parser.add_argument("--unprotected", action="store_true", help="protect() is forgotten")
    return parser.parse_args()


def between(words: argparse.Namespace, loop: int) -> None:
    """Draws numbers, as an evaluation does, and tells them the others."""
    drawn = torch.rand(1)
    died = words.result.with_suffix(f".died{loop}")
    if words.die == [dist.get_rank(), loop] and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(drawn)


def main() -> None:
    words = parse()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(1, words.stages)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    tensor_parallel.model_parallel_cuda_manual_seed(4)
    chunk, optimizer, scheduler = build(words)
    source: Any = Mixed() if words.mixed else None
    data: Any = micro_batches if words.make_data else micro_batches(0) if source is None else source
    if words.unprotected:
        pass
    elif words.forget_data:
        ff_megatron.protect(chunk, optimizer, scheduler)
    else:
        (data,) = ff_megatron.protect(chunk, optimizer, scheduler, data=[data])
    losses: dict[str, float | None] = {}
    best, noise = float("inf"), 0.0
    step = number = 0
    weight = counting.made(words.way, lambda: number)
    for loop in range(words.loops):
        for count, number in enumerate(ff_megatron.iterations(10)):
            with ff_megatron.iteration():
                assert count == number
                noise += random.random()
                chunk.zero_grad_buffer()
                optimizer.zero_grad()
                found = get_forward_backward_func()(
                    forward_step_func=partial(forward, weight=weight()), data_iterator=data, model=[chunk],
                    num_microbatches=COUNT, seq_length=LENGTH, micro_batch_size=MICRO, forward_only=False,
                )  # fmt: skip
                if number != words.skip:
                    optimizer.step()
                    scheduler.step(increment=4)
                    step += 1
                losses[f"{loop} {number}"] = None
                if found:
                    mean = torch.stack([each["loss"] for each in found]).mean()
                    dist.all_reduce(mean, group=parallel_state.get_data_parallel_group())
                    best = min(best, mean.item())
                    losses[f"{loop} {number}"] = mean.item()
                if source is not None:
                    source.share = 0.1 * number
                    noise += source.generator.random()  # an evaluation
            if words.breaks and number == 6:
                break
        between(words, loop)
    states = [value for s in optimizer.chained_optimizers[0].optimizer.state.values() for value in s.values()]
    generators = [torch.get_rng_state(), *tensor_parallel.get_cuda_rng_tracker().get_states().values()]
    path = words.result.with_suffix(f".rank{dist.get_rank()}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "losses": losses, "best": best, "noise": noise, "steps": step, "scheduler": scheduler.num_steps,
                "parameters": digest(chunk.parameters()), "states": digest(filter(torch.is_tensor, states)),
                "lr": [group["lr"] for group in optimizer.param_groups], "random": digest(generators),
            }
        )
    )  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
