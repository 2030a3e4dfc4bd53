"""megatron-core's T5, fed as pretrain_t5.py does: encoder and decoder with a text each, and attention between them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.T5.t5_model import T5Model
from megatron.core.models.T5.t5_spec import get_t5_decoder_with_local_block_spec, get_t5_encoder_with_local_block_spec
from megatron.training import get_args


def build(config: Any, pre_process: bool, post_process: bool) -> T5Model:
    """config: of the decoder, a TransformerConfig. The encoder has half as many layers."""
    args = get_args()
    encoder = deepcopy(config)
    encoder.num_layers = config.num_layers // 2
    return T5Model(
        config=config,
        encoder_config=encoder,
        transformer_encoder_layer_spec=get_t5_encoder_with_local_block_spec(encoder.num_layers),
        transformer_decoder_layer_spec=get_t5_decoder_with_local_block_spec(config.num_layers),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=True,
        parallel_output=True,
    )


def forward(data_iterator: Any, model: Any) -> torch.Tensor:
    """The loss of each position of the decoder's text: what follows in the encoder's is to be said backwards."""
    batch = next(data_iterator) if data_iterator is not None else None
    text = tensor_parallel.broadcast_data(["text"], batch, torch.int64)["text"]
    read, said = text[:, :-1].contiguous(), text.flip(1)
    length = read.shape[1]
    nothing = torch.zeros(len(text), 1, length, length, dtype=torch.bool, device=text.device)
    later = torch.ones(length, length, dtype=torch.bool, device=text.device).triu(1).expand_as(nothing)
    loss: torch.Tensor = model(
        read, said[:, :-1].contiguous(), nothing, later, nothing, lm_labels=said[:, 1:].contiguous()
    )
    return loss
