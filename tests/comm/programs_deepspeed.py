"""DeepSpeed on swappable groups: initialisation, training, and initialisation alone."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.comm.harness import Worker


def train(worker: Worker, iterations: int) -> dict[str, Any]:
    """ZeRO-1, bf16. `iterations` 0: initialise only. The journal ends where training would start."""
    import deepspeed
    import torch
    import torch.distributed as dist

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    torch.manual_seed(worker.rank)  # parameters must come from rank 0
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        model_parameters=list(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000000},
            "bf16": {"enabled": True},
            "gradient_clipping": 1.0,
            "steps_per_print": 10000,
        },
    )
    out: dict[str, Any] = {"world": dist.get_world_size(), "backend": dist.get_backend()}
    if worker._registry is not None:
        out["unused"] = worker.registry.journal.unused()
        out["journal"] = worker.registry.journal.freeze()
        out["groups"] = [(group.spec.key, group.spec.ranks) for group in worker.registry.groups()]
    losses = []
    for step in range(iterations):
        tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(100 * step + worker.rank))
        logits = engine(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    out["losses"] = losses
    weights = b"".join(p.detach().view(torch.uint8).numpy().tobytes() for p in engine.module.parameters())
    out["weights"] = hashlib.sha256(weights).hexdigest()
    return out
