"""Training loops of an unmodified script whose batches come late, early, or from nowhere that FFTrainer knows.

case: loop (a name of LOOPS), batches, iterations, own_loss, ...; see `run`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from small_model import Noisy, digest

import ff_core
import ff_deepspeed
from ff_core.state import registered

SIZE = 4


def make_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, 16, generator=generator), torch.randint(4, (SIZE,), generator=generator)


class Shards:
    """Batches in order; its position is its state."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.position += SIZE
        return make_batch(self.position)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Random:
    """Batches drawn from torch's global generator."""

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(SIZE, 16), torch.randint(4, (SIZE,))


class Recorder:
    """One step at a time; losses by optimizer step."""

    def __init__(self, engine: Any, case: dict[str, Any], interrupter: Any) -> None:
        self.engine, self.case, self.interrupter = engine, case, interrupter
        self.losses: dict[int, float] = {}

    def begin(self) -> None:
        self.interrupter.begin(self.engine.global_steps + 1)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.to(next(self.engine.module.parameters()).dtype)
        if self.case.get("own_loss"):
            return torch.nn.functional.cross_entropy(self.engine(x).float(), y)
        return self.engine(x, y)

    def finish(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)
        self.engine.step()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        self.losses[self.engine.global_steps] = mean.item()
        self.interrupter.running = False


def own(engine: Any, case: dict[str, Any], record: Recorder) -> None:
    """Batches that come from no loader: case["batches"] says how they are made and what is registered of them."""
    kind = case["batches"]
    source = Random() if kind.startswith("random") else Shards()
    state = {"step": 0}
    ff_deepspeed.client_state(lambda: {**state, **(source.state_dict() if kind in ("shards", "shards-ahead") else {})})
    if kind == "registered":
        ff_core.register_state("source", source)
    _, client = engine.load_checkpoint("nowhere")
    if client:
        state["step"] = client["step"]
        if "position" in client:
            source.load_state_dict(client)
    following = source.next() if kind.endswith("-ahead") else None
    while state["step"] < case["iterations"]:
        record.begin()
        batch = make_batch(state["step"]) if kind == "by step" else following or source.next()
        loss = record.loss(*batch)
        if following is not None:
            following = source.next()
        record.finish(loss)
        state["step"] += 1


def one_ahead(loader: Any) -> Iterator[Any]:
    """As Accelerate does it: a batch is given away when the next one has been fetched."""
    batches = iter(loader)
    now = next(batches)
    for following in batches:
        yield now
        now = following
    yield now


def from_thread(loader: Any) -> Iterator[Any]:
    """Batches that a thread has read ahead."""
    read: queue.Queue[Any] = queue.Queue(2)

    def reader() -> None:
        for batch in loader:
            read.put(batch)
        read.put(None)

    threading.Thread(target=reader, daemon=True).start()
    while (batch := read.get()) is not None:
        yield batch


def ahead(engine: Any, case: dict[str, Any], record: Recorder) -> None:
    """A DataLoader that is read ahead: case["batches"] is "one ahead" or "thread"."""
    # Where a thread reads, the data set must not use the global generators, or no run would be like another.
    thread = case["batches"] == "thread"
    data = [dict(zip("xy", make_batch(i), strict=True)) for i in range(case["iterations"])] if thread else None
    loader: Any = torch.utils.data.DataLoader(
        data if thread else Noisy(SIZE * case["iterations"]), batch_size=None if thread else SIZE, shuffle=not thread
    )
    ff_deepspeed.client_state(dict)
    engine.load_checkpoint("nowhere")
    for batch in from_thread(loader) if thread else one_ahead(loader):
        record.begin()
        record.finish(record.loss(batch["x"], batch["y"]))


LOOPS = {"own": own, "ahead": ahead}


def run(engine: Any, case: dict[str, Any], interrupter: Any) -> dict[str, Any]:
    """Train; returns losses by step and a digest of what training left."""
    record = Recorder(engine, case, interrupter)
    try:
        LOOPS[case["loop"]](engine, case, record)
    finally:
        if "source" in registered.collect():
            registered.unregister_state("source")
    return {"losses": record.losses, "digest": digest(engine)}
