"""A step of a small transformer layer, made for what it loads: kernels, cuBLAS, autograd's threads."""

from __future__ import annotations

import torch
from torch import nn

_TOKENS, _WIDTH, _HEADS = 512, 512, 8


def run(device: torch.device) -> None:
    """Forward, backward and a step in float32 and bfloat16. Random states and memory statistics are as before."""
    with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
        for dtype in (torch.float32, torch.bfloat16):
            _step(device, dtype)
        torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def _step(device: torch.device, dtype: torch.dtype) -> None:
    embedding, head = nn.Embedding(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
    model = nn.ModuleList((embedding, layer, head)).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    words = torch.arange(_TOKENS, device=device).reshape(1, -1)
    mask = nn.Transformer.generate_square_subsequent_mask(_TOKENS, device=device, dtype=dtype)
    scores = head(layer(embedding(words), src_mask=mask, is_causal=True))
    nn.functional.cross_entropy(scores.flatten(0, 1).float(), words.flatten()).backward()
    norm = torch.stack([each.grad.norm() for each in model.parameters() if each.grad is not None]).norm()
    torch.isfinite(norm).cpu()  # not item(): that pins memory
    optimizer.step()
