"""What scripts do around the engine: skips that ranks agree on, errors that they swallow, and plain misuse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

import ff_deepspeed
from ff_core.state import registered


def agreed_to_skip(y: torch.Tensor, how: str) -> bool:
    """Whether a micro-batch is bad on any rank; what the ranks agree on is one collective."""
    bad = torch.tensor(int(y.sum()) % 3 == 0 and how == "some").int()
    torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    return bool(bad)


class Count:
    """A warm-up of the loss that counts by itself."""

    def __init__(self) -> None:
        self.calls = 0

    def next(self) -> float:
        self.calls += 1
        return 1 - 0.5**self.calls

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


count = Count()


def weight(how: str | None, engine: Any) -> float:
    """Of the loss. how: what it is computed from: "own count", "registered" (the count is) or "engine"; None: none."""
    if how is None:
        return 1.0
    if engine.global_steps == 0 and how != "engine" and not engine.micro_steps:
        count.calls = 0
        if how == "registered" and "count" not in registered.collect():
            registered.register_state("count", count)
    return 1 - 0.5 ** (engine.global_steps + 1) if how == "engine" else count.next()


@contextlib.contextmanager
def other_version(case: dict[str, Any]) -> Iterator[None]:
    """An engine of another DeepSpeed, as far as can be seen.

    case: "version": its number; "has": [class, attribute], which it has besides; "lacks": the same, which it has not.
    """
    number = deepspeed.__version__
    deepspeed.__version__ = case.get("version", number)
    name = case.get("has", case.get("lacks", ["DeepSpeedZeroOptimizer"]))[0]
    kind = {"DeepSpeedEngine": DeepSpeedEngine, "DeepSpeedZeroOptimizer": DeepSpeedZeroOptimizer}[name]
    original = kind.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "has" in case:
            self.__dict__[case["has"][1]] = 0
        original(self, *args, **kwargs)
        if "lacks" in case:
            del self.__dict__[case["lacks"][1]]

    kind.__init__ = init
    try:
        yield
    finally:
        kind.__init__, deepspeed.__version__ = original, number


#: Of fp16: it doubles after three steps in a row, and is halved by the second overflow.
SCALER = {"initial_scale_power": 8, "loss_scale_window": 3, "hysteresis": 2, "min_loss_scale": 1}


def configuration(case: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's, of a case of worker.py."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": case.get("gas", 1),
        "zero_optimization": {"stage": case["stage"], "reduce_bucket_size": 1000000, **case.get("zero", {})},
        "gradient_clipping": case.get("clip", 1.0),
        "steps_per_print": 1000000,
        "ff_failover": {"enabled": True, **({"persist": case["persist"]} if "persist" in case else {})},
        **case.get("config", {}),
    }
    if case["dtype"] == "bf16":
        config["bf16"] = {"enabled": True}
    if case["dtype"] == "fp16":
        config["fp16"] = {"enabled": True, **SCALER, **case.get("scaler", {})}
    return config


def overflow(where: list[list[int]] | None, engine: Any, rank: int) -> float:
    """Of the loss: infinite in iterations and on ranks of `where`, [[iteration, rank], ...]."""
    return float("inf") if [engine.global_steps + 1, rank] in (where or []) else 1.0


def extra_factor(how: str, engine: Any) -> float | None:
    """Of a layer's output; None: it is not run. how: what happens after two steps in which it is 1."""
    if how == "frozen":
        engine.module.extra.requires_grad_(engine.global_steps < 2)
    elif how == "never" or engine.global_steps >= 2:
        second = engine.micro_steps % 2
        return {"zero": 0.0, "second": 1.0 if second else None, "first": None if second else 1.0}.get(how)
    return 1.0


def switch(engine: Any, x: torch.Tensor, how: str | bool) -> None:
    """What a loop does between two steps: an evaluation with collectives, a layer that is frozen for one step, another
    dropout rate.  how: "resize": another number of accumulation steps, once."""
    if how == "resize" and engine.global_steps == 2 and engine.gradient_accumulation_steps() == 2:
        engine.set_train_batch_size(engine.train_batch_size() // 2)
    if how is not True:
        return
    engine.eval()
    for _ in range(2):
        with torch.no_grad():
            engine.module.norm.running_mean.add_(0.25)  # an evaluation that leaves something in a buffer
            metric = engine.module.outer(engine.module.drop(engine.module.inner(x))).sum()
        torch.distributed.all_reduce(metric)
    assert not engine.module.drop.training, "the script has left it in evaluation"
    engine.train()
    engine.module.norm.eval()
    engine.module.drop.p = 0.1 + 0.2 * (engine.global_steps % 3)
    engine.module.outer.requires_grad_(engine.global_steps % 2 == 0)
    torch.distributed.all_reduce(metric)


def edit_gradients(engine: Any, how: str | None) -> None:
    """Between backward and step. how: "in place", "data" (past torch's version counters) or None: not."""
    if how is None:
        return
    zero = getattr(engine.optimizer, "averaged_gradients", None) or {}
    held = [p.grad for p in engine.module.parameters() if p.grad is not None]
    for gradient in [*held, *(gradient for group in zero.values() for gradient in group)]:
        with torch.no_grad():
            (gradient.data if how == "data" else gradient).mul_(0.25)


def swallowing(engine: Any, loss: torch.Tensor) -> None:
    """A step as people write it who want to skip whatever fails."""
    try:
        engine.backward(loss)
        engine.step()
    except:  # noqa: E722
        pass


def gathering(data: list[torch.Tensor]) -> Any:
    """ALST's, of one rank."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPDataLoaderAdapter

    return UlyssesSPDataLoaderAdapter(torch.utils.data.DataLoader(data), 0, None, 1, "cpu")


def misuse(engine: Any, how: str, make_engine: Any) -> None:
    """Loops that are written wrongly. make_engine(case): another engine."""
    loader = [torch.ones(4, 16, dtype=next(engine.module.parameters()).dtype)] * 4

    class Proxy:
        """What is not its own is the engine's."""

        def __init__(self) -> None:
            self.held = {"engine": engine}

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["held"]["engine"], name)

    given = {"proxy": Proxy, "compiled": lambda: torch.compile(engine)}.get(how, lambda: engine)()

    def micro_step(batch: torch.Tensor) -> None:
        engine.backward(engine(batch).float().mean())
        engine.step()

    def agreeing() -> Any:
        for batch in loader:
            torch.distributed.all_reduce(torch.ones(1))
            yield batch

    loaders = {"collective in the data": agreeing, "gathering loader": lambda: gathering(loader)}
    for batches in ff_deepspeed.batches(given, loaders.get(how, lambda: loader)()):
        if how == "no with":
            micro_step(batches[0])
            continue
        with ff_deepspeed.iteration():
            if how == "nested":
                next(ff_deepspeed.batches(engine, loader))
            if how == "with twice":
                with ff_deepspeed.iteration():
                    micro_step(batches[0])
            if how == "own error":
                raise ValueError("the script's own")
            if how == "own count":
                engine.set_gradient_accumulation_boundary(False)
            if how == "whole items":
                engine.set_gradient_accumulation_boundary(True)  # as Accelerate does with one micro-batch to a step
            for _ in range({"no step": 0, "two steps": 2, "three of two": 3}.get(how, 1)):
                micro_step(batches[0])
            if how == "resized":
                micro_step(batches[1])
                engine.set_train_batch_size(engine.train_batch_size() // 2)
        if how == "break":
            break
    if how == "with outside":
        with ff_deepspeed.iteration():
            pass
    if how == "second engine":
        off = {"ff_failover": {"enabled": False}, "zero_allow_untested_optimizer": True}
        make_engine({"stage": 1, "dtype": "bf16", "optimizer": "counting", "config": off})
    if how.startswith("reference"):
        stage = 3 if how == "reference under ZeRO-3" else 0
        config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}}
        deepspeed.initialize(model=torch.nn.Linear(4, 4), config=config)
    if how == "no engine":
        ff_deepspeed.batches(loader, engine)
    if how == "limit":
        ff_deepspeed.batches(engine, loader, limit=-1)
