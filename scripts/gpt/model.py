"""A byte-level GPT in plain torch: pre-norm blocks, learned positions, dropout, next-byte cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """width: of the residual stream.  depth: number of blocks.  heads: per block."""

    width: int
    depth: int
    heads: int


#: Parameters at sequence length 128: about 0.15, 0.09, 5.1, 19.2, 99.7, 303 and 1008 million. Heads of 64, as GPT-2's,
#: but for the first two. "deep" has as many layers as "300m", and next to nothing in them.
SIZES = {
    "tiny": Shape(64, 2, 2), "deep": Shape(16, 24, 1), "5m": Shape(320, 4, 5), "20m": Shape(512, 6, 8),
    "100m": Shape(768, 14, 12), "300m": Shape(1024, 24, 16), "1b": Shape(2048, 20, 32),
}  # fmt: skip


def _empty(kind: type[nn.Module], *arguments: int, **options: bool) -> Any:
    """A layer without torch's own initial values: `Gpt` sets others. A replacement builds the model while all wait."""
    return nn.utils.skip_init(kind, *arguments, **options)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer. In and out: (batch, sequence, width)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.qkv = _empty(nn.Linear, shape.width, 3 * shape.width)
        self.out = _empty(nn.Linear, shape.width, shape.width)
        self.up = _empty(nn.Linear, shape.width, 4 * shape.width)
        self.down = _empty(nn.Linear, 4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + functional.dropout(mixed, self.dropout, self.training)
        inner = self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return x + functional.dropout(inner, self.dropout, self.training)


class Gpt(nn.Module):
    """forward(x, y): mean next-byte cross-entropy, a float32 scalar. x, y: int64 (batch, sequence), y is x shifted."""

    def __init__(self, shape: Shape, sequence: int, dropout: float) -> None:
        super().__init__()
        self.bytes = _empty(nn.Embedding, VOCABULARY, shape.width)
        self.positions = _empty(nn.Embedding, sequence, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)
        self.head = _empty(nn.Linear, shape.width, VOCABULARY, bias=False)
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # keeps the residual stream's variance at any depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.depth))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        hidden = self.dropout(self.bytes(x) + self.positions(positions))
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden)).float()
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten())
