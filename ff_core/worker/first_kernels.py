"""Made in a spare for what it loads: kernels, cuBLAS, cuDNN, autograd's threads. No result is kept.

A device loads a kernel when it is first launched, which takes milliseconds. Measured on an H200 in the first iteration
of a GPT of 300 M parameters: attention by cuDNN 0.14 s, numbers of one element in the optimizer's step 0.15 s.
"""

from __future__ import annotations

import torch
from torch import nn

_TOKENS, _WIDTH, _HEADS = 512, 512, 8
_DTYPES = (torch.float32, torch.bfloat16)
_HEAD_WIDTHS = (64, 128)
_OF_ONE = (
    "abs", "neg", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "isnan", "isinf", "isfinite", "logical_not",
    "sum", "mean", "amax", "amin", "max", "min", "any", "all", "argmax", "norm", "zero_", "clone",
)  # fmt: skip
_OF_TWO = ("add", "sub", "mul", "div", "pow", "lt", "le", "gt", "ge", "eq", "ne")
_OF_FLAGS = ("logical_and", "logical_or", "bitwise_or", "bitwise_and")
_CASTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)


def run(device: torch.device) -> None:
    """What follows, in float32 and bfloat16. Random states and memory statistics are as before."""
    with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
        for dtype in _DTYPES:
            _step(device, dtype)
            _attention(device, dtype)
        _numbers(device)
        torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    _empty_host_cache()
    torch.cuda.reset_peak_memory_stats(device)


def _empty_host_cache() -> None:
    """Whatever reads a number from the device pins memory, which torch keeps (item(), masked_fill_() with a tensor)."""
    name = "_accelerator_emptyHostCache" if hasattr(torch._C, "_accelerator_emptyHostCache") else "_host_emptyCache"
    getattr(torch._C, name)()


def _step(device: torch.device, dtype: torch.dtype) -> None:
    """Forward, backward and a step of a small transformer layer."""
    embedding, head = nn.Embedding(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
    model = nn.ModuleList((embedding, layer, head)).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    words = torch.arange(_TOKENS, device=device).reshape(1, -1)
    mask = nn.Transformer.generate_square_subsequent_mask(_TOKENS, device=device, dtype=dtype)
    scores = head(layer(embedding(words), src_mask=mask, is_causal=True))
    nn.functional.cross_entropy(scores.flatten(0, 1).float(), words.flatten()).backward()
    norm = torch.stack([each.grad.norm() for each in model.parameters() if each.grad is not None]).norm()
    torch.isfinite(norm).item()
    optimizer.step()


def _attention(device: torch.device, dtype: torch.dtype) -> None:
    """Without a mask, which leads to other kernels than with one: cuDNN's or Flash Attention's."""
    for width in _HEAD_WIDTHS:
        for dropout in (0.0, 0.1):
            shape = (1, _HEADS, _TOKENS, width)
            query, key, value = (torch.ones(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
            nn.functional.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True
            ).sum().backward()


def _numbers(device: torch.device) -> None:
    """Norms, flags of an overflow, scales, sums of words: a step does much with few numbers."""
    for dtype in (torch.float64, *_DTYPES):
        for shape in ((), (293,)):
            number = torch.ones(shape, dtype=dtype, device=device)
            for name in _OF_ONE:
                getattr(number.clone(), name)()
            for name in _OF_TWO:
                getattr(number, name)(number)
                getattr(number, name)(2.0)
            torch.linalg.vector_norm(torch.stack([number.pow(0.5), 1.0 / number, number.clamp(max=1.0)]))
            flag = number > 0
            torch.where(flag, number, -number)
            number.clone().masked_fill_(flag, 1.0).masked_fill_(flag, torch.zeros((), dtype=dtype, device=device))
            for other in _CASTS:
                number.to(other)
    flag = torch.ones(1, dtype=torch.bool, device=device)
    for name in _OF_FLAGS:
        getattr(flag, name)(flag)
    for words in (torch.uint8, torch.int16, torch.int32, torch.int64):
        torch.ones(293, dtype=words, device=device).sum(dtype=torch.int64)
