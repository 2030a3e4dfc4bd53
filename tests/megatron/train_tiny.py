"""A small GPT trained by `pretrain`, as a Megatron-LM user's script would: the workload of the tests. On the CPU by the
shim cuda_on_cpu; where torch sees GPUs, on those.

    torchrun --nproc-per-node 4 train_tiny.py --bf16 --use-distributed-optimizer --result out/result.json
    fftrain run --nproc-per-node 4 --spares 1 train_tiny.py ... --ff-failover

Writes out/result.rank<R>.json (see record.py).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
# One generator serves as CPU's and CUDA's under the shim, which megatron-core remarks on in every forward.
logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import torch  # noqa: E402

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
else:
    import cuda_on_cpu  # noqa: F401

sys.path.insert(0, str(HERE / "standin"))

import background_saves  # noqa: E402
import context_parallel  # noqa: E402
import encoder_decoder  # noqa: E402
import megatron.training.training as training  # noqa: E402
import precision_aware  # noqa: E402
import record  # noqa: E402
from megatron.core import tensor_parallel  # noqa: E402
from megatron.core.enums import ModelType  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.transformer.moe import moe_utils  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.training import build, get_args, pretrain  # noqa: E402


def extra_args(parser: Any) -> Any:
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--loss-log", type=Path)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--clamp", choices=("weights", "masters"), help="weights: between steps; masters: in the step")
    background_saves.extra_args(parser)
    parser.add_argument("--decoder-first-pipeline-num-layers", type=int)
    parser.add_argument("--pipeline-model-parallel-layout")
    parser.add_argument("--mtp-num-layers", type=int)
    parser.add_argument("--t5", action="store_true")
    parser.add_argument("--precision-aware", nargs=3, metavar=("EXP_AVG", "EXP_AVG_SQ", "MASTERS"))
    return parser


def experts(args: Any) -> dict[str, Any]:
    """Routing with everything that a router remembers: biases and counts of tokens in buffers, auxiliary losses."""
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # megatron-core asks for its value without TransformerEngine too
    return {
        "num_moe_experts": args.num_experts, "moe_ffn_hidden_size": 2 * args.hidden_size, "moe_router_topk": 2,
        "moe_token_dispatcher_type": args.moe_token_dispatcher_type,
        "moe_router_load_balancing_type": args.moe_router_load_balancing_type, "moe_aux_loss_coeff": [1e-2, 1e-2],
        "moe_z_loss_coeff": args.moe_z_loss_coeff, "moe_input_jitter_eps": 1e-2,
        "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
        "moe_shared_expert_intermediate_size": args.hidden_size,
        "moe_shared_expert_overlap": args.moe_token_dispatcher_type == "alltoall",
    }  # fmt: skip


def model_provider(pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None) -> Any:
    args = get_args()
    if args.precision_aware:
        precision_aware.enable(build, args.precision_aware)
    config = TransformerConfig(
        num_layers=args.num_layers, hidden_size=args.hidden_size, num_attention_heads=args.num_attention_heads,
        use_cpu_initialization=True, tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size, hidden_dropout=args.dropout, attention_dropout=args.dropout,
        bf16=args.bf16, fp16=args.fp16, params_dtype=args.params_dtype, pipeline_dtype=args.params_dtype,
        gradient_accumulation_fusion=False, persist_layer_norm=False, bias_dropout_fusion=False,
        masked_softmax_fusion=False, deallocate_pipeline_outputs=True, add_bias_linear=args.num_experts is None,
        expert_model_parallel_size=args.expert_model_parallel_size, **(experts(args) if args.num_experts else {}),
        num_layers_in_first_pipeline_stage=args.decoder_first_pipeline_num_layers,
        pipeline_model_parallel_layout=args.pipeline_model_parallel_layout, mtp_num_layers=args.mtp_num_layers,
    )  # fmt: skip
    if args.t5:
        return encoder_decoder.build(config, pre_process, post_process)
    spec = get_gpt_layer_local_spec(num_experts=args.num_experts)
    mtp_spec = None
    if args.mtp_num_layers:
        mtp_spec = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=vp_stage)
    if args.context_parallel_size > 1:
        spec.submodules.self_attention.submodules.core_attention = context_parallel.GatheringAttention
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=True,
        mtp_block_spec=mtp_spec,
        vp_stage=vp_stage,
    )


class Samples(torch.utils.data.Dataset[Any]):
    """Sample i is drawn from a generator seeded with i."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        args = get_args()
        generator = torch.Generator().manual_seed(self.seed + index)
        return {"text": torch.randint(0, args.padded_vocab_size, (args.seq_length + 1,), generator=generator)}


def datasets(counts: Any, vp_stage: int | None = None) -> Any:
    return Samples(counts[0], 10_000), Samples(counts[1], 20_000_000), Samples(counts[2], 30_000_000)


def loss_func(output: torch.Tensor) -> Any:
    losses = output.float().view(-1)
    count = torch.tensor(losses.numel(), dtype=torch.int, device=losses.device)
    return losses.sum(), count, {"lm loss": torch.stack([losses.sum().detach(), count.float()])}


@torch.no_grad()
def clamp(tensors: Any) -> None:
    for tensor in tensors:
        tensor.clamp_(-0.02, 0.02)


def clamp_masters() -> None:
    """Have every inner optimizer clamp what it has just updated."""
    original = training.setup_model_and_optimizer

    def setup(*args: Any, **kwargs: Any) -> Any:
        model, optimizer, scheduler = original(*args, **kwargs)
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            part.optimizer.register_step_post_hook(
                lambda inner, *_: clamp(p for group in inner.param_groups for p in group["params"])
            )
        return model, optimizer, scheduler

    training.setup_model_and_optimizer = setup


def forward_step(data_iterator: Any, model: Any) -> Any:
    length = get_args().seq_length
    if get_args().clamp == "weights" and get_args().curr_iteration == 3:
        clamp(model.parameters())
    if get_args().t5:
        return encoder_decoder.forward(data_iterator, model), loss_func
    batch = next(data_iterator) if data_iterator is not None else None
    text = tensor_parallel.broadcast_data(["text"], batch, torch.int64)["text"]
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    positions = torch.arange(length, device=text.device).unsqueeze(0).expand_as(tokens)
    part = context_parallel.cut({"tokens": tokens, "labels": labels, "positions": positions})
    mask = context_parallel.mask(length).to(text.device)
    return model(part["tokens"], part["positions"], mask, labels=part["labels"]), loss_func


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "masters" in sys.argv:
        clamp_masters()
    background_saves.die_finalizing(training)
    with record.recorded(training):
        pretrain(datasets, model_provider, ModelType.encoder_or_decoder, forward_step, extra_args_provider=extra_args)
    torch.distributed.destroy_process_group()
