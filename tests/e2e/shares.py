"""A DeepSpeed script whose loop makes objects that are at two places, and sets what its data set loads with.

usage: shares.py --result FILE [--usual] [--swaps] [--chooses]

--usual: the usual loop; else the exact one.  --swaps: a module is replaced while training goes on.  --chooses: both
modules are there, and an attribute of the model says which one counts.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.distributed as dist
from small import arguments, make_engine
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

import ff_deepspeed

args = arguments("usual", "swaps", "chooses")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.whole, self.outer = (
            nn.Linear(16, 32),
            nn.Dropout(0.1),
            nn.Identity(),
            nn.Linear(32, 4),
        )
        self.act, self.warm = torch.relu, True

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        held = self.act(self.inner(x))
        return nn.functional.cross_entropy(self.outer(self.drop(held) if self.warm else self.whole(held)), y)


class Data(Dataset[Any]):
    """Its noise is set by the loop."""

    def __init__(self) -> None:
        self.x, self.y, self.noise = torch.randn(24, 16), torch.randint(0, 4, (24,)), 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return index, self.x[index] + self.noise * torch.randn(16), self.y[index]


class Hard(Sampler[int]):
    """Draws by weights that the loop sets."""

    def __init__(self) -> None:
        self.weights, self.draws = torch.ones(24), torch.Generator().manual_seed(dist.get_rank())

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Any:
        yield from torch.multinomial(self.weights, 24, replacement=True, generator=self.draws).tolist()


torch.manual_seed(5)
model = Net()
engine = make_engine(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
data, sampler = Data(), Hard()
torch.manual_seed(100 + dist.get_rank())
loader = DataLoader(data, batch_size=4, sampler=sampler)
scale: float | None = None
phases: list[dict[str, Any]] = []
current: dict[str, Any] = {}
momentum: dict[int, torch.Tensor] = {}
calls = 0


def train(indices: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    global calls, current, scale
    if scale is None:
        scale = 1 / x.std().item()  # of the first batch
    if calls % 5 == 0:
        current = {"losses": []}
        phases.append(current)
    if calls == 3:
        model.act = torch.tanh
        if args.swaps:
            model.drop = nn.Identity()
        model.warm = not args.chooses
    calls += 1
    history = sum(sum(phase["losses"]) for phase in phases)
    loss = engine(x * scale * (1 + 0.01 * history), y)
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    current["losses"].append(mean.item())
    sampler.weights[indices] += mean
    data.noise = 0.1 * mean.item()
    with torch.no_grad():
        for p in model.parameters():
            momentum[id(p)] = momentum.get(id(p), torch.zeros_like(p)) * 0.9 + p


if args.usual:
    ff_deepspeed.client_state(dict)
    engine.load_checkpoint("checkpoints-that-do-not-exist")
for _ in range(2):
    if args.usual:
        for batch in loader:
            train(*batch)
    else:
        for batches in ff_deepspeed.batches(engine, loader):
            with ff_deepspeed.iteration():
                for batch in batches:
                    train(*batch)
digest = hashlib.sha256()
for tensor in [*model.parameters(), *(momentum[id(p)] for p in model.parameters()), sampler.weights]:
    digest.update(tensor.detach().numpy().tobytes())
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(
    json.dumps({"phases": phases, "digest": digest.hexdigest(), "scale": scale, "noise": data.noise, "calls": calls})
)
