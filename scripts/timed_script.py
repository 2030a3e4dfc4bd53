"""Runs a training script and times what FFTrainer does in its training thread.

    timed_script.py DIR/hooks.json FRAMEWORK SCRIPT [ARGUMENTS ...]

Under `fftrain run` rank 0 writes a list to DIR/hooks.json: for each iteration, part -> seconds of CPU of the training
thread, so that what else the machine does hardly matters. Each moment counts for one part, the innermost one that runs.
The framework's own functions, and those that wait, are parts as well. Under torchrun the script just runs.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import thread_time
from typing import Any

#: Part -> functions ("module:name") that belong to it. "outside" is the framework's and the user's own.
PARTS: dict[str, tuple[str, ...]] = {
    "step": ("ff_core.worker.training:Training._stepped",),
    "inputs": ("ff_core.worker.training:Training.given", "ff_core.state.inputs:Inputs.check"),
    "fingerprint": ("ff_core.state.fingerprint:Fingerprint.__init__",),
    "edits": ("ff_core.state.edits:Edits.stepped", "ff_core.state.edits:Edits.found"),
    "sameness": ("ff_core.worker.sameness:Sameness.before_step",),
    "hyperparameters": (
        "ff_core.state.hyperparameters:Noted.of",
        "ff_core.state.hyperparameters:values_of",
        "ff_core.state.hyperparameters:Repeated.uses",
    ),
    "seal": ("ff_core.worker.training:Training.seal", "ff_core.worker.scalars:take"),
    "modes": ("ff_core.state.modes:Modes.save",),
    "buffers": ("ff_core.state.buffers:Buffers.save",),
    "codec": ("ff_core.state.codec:encode",),
    "random": ("ff_core.state.rng:capture",),
    "data": ("ff_deepspeed.loop:Loop._end", "ff_deepspeed.loop:Loop._settle", "ff_megatron.data:Data.positions"),
    "trainer": ("ff_deepspeed.scalars:save", "ff_megatron.scalars:save", "ff_megatron.buckets:GoldenCounts.save"),
    "groups": ("ff_core.comm.group:SwappableGroup.perform",),
    "gate": ("ff_core.worker.gate:CommitGate.pass_",),
    "copy": ("ff_core.worker.replicator:Replicator.begin",),
}
#: Not Python of ours: the engine, other ranks, the framework.
WAITS = ("gate", "copy", "outside")


class Clock:
    """Exclusive times: a part that begins inside another one stops the other's clock."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._stack = ["outside"]
        self._since = thread_time()

    def enter(self, part: str) -> None:
        self._charge()
        self._stack.append(part)

    def leave(self) -> None:
        self._charge()
        self._stack.pop()

    def end_iteration(self) -> None:
        self._charge()
        self.iterations.append(dict(self._now))
        self._now.clear()

    def _charge(self) -> None:
        now = thread_time()
        self._now[self._stack[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, whose time counts for `part`."""

        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return around


def time_hooks(clock: Clock) -> None:
    """Before the framework is imported, and its adapter."""
    from ff_core.worker import hooks

    wrap = hooks.wrap

    def timed_wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
        """A hook and the framework's function in it: what the hook adds is a part, "hooks"."""
        setattr(owner, name, clock.timed(getattr(owner, name), "outside"))
        wrap(owner, name, around)
        setattr(owner, name, clock.timed(getattr(owner, name), "hooks"))

    hooks.wrap = timed_wrap


def time_parts(clock: Clock, framework: str) -> None:
    """framework: whose adapter's parts are timed."""
    for part, names in PARTS.items():
        for name in names:
            if name.startswith(("ff_core.", f"ff_{framework}.")):
                owner, last = found(name)
                setattr(owner, last, clock.timed(getattr(owner, last), part))


def found(name: str) -> tuple[Any, str]:
    """Owner and attribute of "module:name"."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *inner, last = path.split(".")
    for step in inner:
        owner = getattr(owner, step)
    return owner, last


def leave_out_garbage(clock: Clock) -> None:
    """A collection comes to whoever makes the last object; plain jobs have it as well."""

    def around(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            clock.enter("outside")
        else:
            clock.leave()

    gc.callbacks.append(around)


def time_training(clock: Clock) -> None:
    """The step's own part, and where an iteration ends."""
    from ff_core.worker.training import Training

    seal, step = Training.seal, Training.step

    def sealed(training: Training) -> None:
        seal(training)
        clock.end_iteration()

    @contextmanager
    def stepping(training: Training) -> Iterator[None]:
        entered: AbstractContextManager[None] = step(training)
        clock.timed(entered.__enter__, "step")()
        yield  # a bench has no failures
        clock.timed(entered.__exit__, "step")(None, None, None)

    Training.step = stepping  # type: ignore[method-assign,assignment]
    Training.seal = sealed  # type: ignore[method-assign,assignment]


def main() -> None:
    report, framework, script, *arguments = sys.argv[1:]
    import ff_core

    if ff_core.is_fftrain_launched() and os.environ["RANK"] == "0":
        clock = Clock()
        time_hooks(clock)
        time_parts(clock, framework)
        time_training(clock)
        leave_out_garbage(clock)
        atexit.register(lambda: Path(report).write_text(json.dumps(clock.iterations)))
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
