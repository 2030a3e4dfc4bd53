"""What `train()` begins, and what a `train()` that is entered again after a failure would begin a second time.

| argument                      | after a failure                                                                    |
| ---                           | ---                                                                                |
| --profile                     | what runs is ended; the iterations that were to be profiled and come again or are  |
|                               | still to come are profiled, by a replacement too                                   |
| --log-straggler               | what the interrupted iteration has measured is dropped; on or off, as a request    |
|                               | over the network may have switched it, is the same on all ranks                    |
| --log-energy                  | sums go on from those of the version                                               |
| --run-workload-inspector-server | a survivor's goes on, a replacement begins its own                               |
| --exit-duration-in-mins       | counts from the job's beginning, in a replacement too                              |

`train()` reads some arguments only before its first iteration. Those are changed until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType, ModuleType, TracebackType
from typing import Any

import torch

_STARTED = "_TRAIN_START_TIME"


class BegunOnce:
    """Of one training. training: the module megatron.training.training.  args: Megatron's."""

    def __init__(self, training: ModuleType, args: Any) -> None:
        self._training, self._args = training, args
        self._own: dict[str, Any] = {}  # values of arguments that are changed now
        self._straggler: bool | None = None

    def save(self) -> dict[str, Any]:
        """Between two iterations: plain values."""
        energy, detector = self._energy(), self._detector()
        return {
            "started": getattr(self._training, _STARTED, None),
            "energy": None if energy is None else [energy._total_energy, energy._lap_energy],
            "straggler": None if detector is None else bool(detector.enabled),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go back to the version that `saved` is of; train() is entered after that."""
        if saved["started"] is not None:
            setattr(self._training, _STARTED, saved["started"])
        energy = self._energy()
        if energy is not None and saved["energy"] is not None:
            energy._total_energy, energy._lap_energy = saved["energy"]
        self._straggler = saved["straggler"]

    def leave(self, left: Mapping[str, Any]) -> None:
        """A failure has ended `train()`, which had the local variables `left`: end what it has begun."""
        self._put_back()
        profiler, nvtx = left.get("prof"), left.get("nsys_nvtx_context")
        running = torch.autograd._profiler_enabled()  # or it has been ended by train()
        if profiler is not None and (running or profiler.current_action is torch.profiler.ProfilerAction.WARMUP):
            profiler.on_trace_ready = None  # it would write a part of a trace; the whole one comes
            profiler.stop()
            observer = getattr(profiler, "execution_trace_observer", None)
            if observer is not None:
                observer.unregister_callback()
        if nvtx is not None and running:
            torch.cuda.check_error(torch.cuda.cudart().cudaProfilerStop())
            nvtx.__exit__(None, None, None)
        detector = self._detector()
        if detector is not None:
            detector.reset()

    def again(self, iteration: int, newcomer: bool) -> None:
        """`train()` is about to go on from `iteration`."""
        self._put_back()
        args = self._args
        if not newcomer:
            self._set("run_workload_inspector_server", False)
        if not getattr(args, "profile", False):
            return
        start, end = args.profile_step_start, args.profile_step_end
        if iteration >= end - args.use_pytorch_profiler:
            self._set("profile", False)
        elif args.use_pytorch_profiler:  # torch's counts from where train() is entered, and the time before as a step
            first = max(start - iteration, 0)
            self._set("profile_step_start", first)
            self._set("profile_step_end", first + end - max(start, iteration))
        else:
            self._set("profile_step_start", max(start, iteration))

    def first_step(self) -> None:
        """`train()` has read what it reads before its first iteration."""
        profiled = self._own.pop("profile", None)
        self._put_back()
        if profiled is not None:  # read in every iteration
            self._own["profile"] = profiled
        if self._straggler is not None:
            wanted, self._straggler, detector = self._straggler, None, self._detector()
            detector._off = not wanted
            detector.start = detector.start_method if wanted else detector.null_method
            detector.stop = detector.stop_method if wanted else detector.null_method

    def _set(self, name: str, value: Any) -> None:
        if hasattr(self._args, name):
            self._own[name] = getattr(self._args, name)
            setattr(self._args, name, value)

    def _put_back(self) -> None:
        for name, value in self._own.items():
            setattr(self._args, name, value)
        self._own = {}

    def _energy(self) -> Any:
        return self._training.get_energy_monitor() if getattr(self._args, "log_energy", False) else None

    def _detector(self) -> Any:
        return self._training.stimer if getattr(self._args, "log_straggler", False) else None


def left_by(traceback: TracebackType | None, code: CodeType) -> dict[str, Any]:
    """Local variables of the frame of `code` through which an exception with this traceback came; none: {}."""
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            return dict(traceback.tb_frame.f_locals)
        traceback = traceback.tb_next
    return {}
