"""What train() begins is not begun twice, and what it has begun does not end with a failure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.energy_monitor import EnergyMonitor
from megatron.core.utils import StragglerDetector

from ff_megatron.begun_once import BegunOnce, left_by

LAST = 12


def arguments(**extra: Any) -> Any:
    return SimpleNamespace(**{
        "profile": True, "use_pytorch_profiler": True, "profile_step_start": 3, "profile_step_end": 6,
        "run_workload_inspector_server": True, **extra,
    })  # fmt: skip


def train(args: Any, once: BegunOnce, iteration: int, folder: Path, fail_at: int | None = None) -> list[int]:
    """The parts of train() that profile, as in core_v0.16.1. Returns the iterations that were recorded."""
    recorded: list[int] = []
    prof = None
    if args.profile:
        prof = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            schedule=torch.profiler.schedule(
                wait=max(args.profile_step_start - 1, 0), warmup=1 if args.profile_step_start > 0 else 0,
                active=args.profile_step_end - args.profile_step_start, repeat=1,
            ),
            on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder)),
        )  # fmt: skip
        prof.start()
    while iteration < LAST:
        if args.profile:
            assert prof is not None
            prof.step()
        once.first_step()
        if torch.autograd._profiler_enabled():
            recorded.append(iteration)
        if iteration == fail_at:
            raise KeyboardInterrupt
        iteration += 1
        if args.profile and iteration == args.profile_step_end:
            assert prof is not None
            prof.stop()
    return recorded


def interrupted(args: Any, once: BegunOnce, fail_at: int, folder: Path) -> None:
    try:
        train(args, once, 0, folder, fail_at)
    except KeyboardInterrupt as error:
        once.leave(left_by(error.__traceback__, train.__code__))


@pytest.mark.parametrize(
    ("fail_at", "goes_on_from", "recorded"),
    [
        (1, 1, [2, 3, 4]),
        (2, 1, [2, 3, 4]),
        (2, 2, [2, 3, 4]),
        (3, 3, [3, 4]),
        (4, 2, [2, 3, 4]),
        (7, 6, []),
        (5, 5, []),
    ],
)
def test_torchs_profiler_records_the_same_iterations(
    tmp_path: Path, fail_at: int, goes_on_from: int, recorded: list[int]
) -> None:
    args = arguments()
    once = BegunOnce(SimpleNamespace(), args)
    assert train(args, once, 0, tmp_path / "uninterrupted") == [2, 3, 4]
    interrupted(args, once, fail_at, tmp_path / "job")
    assert not torch.autograd._profiler_enabled()
    for newcomer in (False, True):
        once.again(goes_on_from, newcomer)
        assert train(args, once, goes_on_from, tmp_path / "job") == recorded
        once.leave({})
    assert (args.profile, args.profile_step_start, args.profile_step_end) == (True, 3, 6)


def test_a_trace_is_written_once(tmp_path: Path) -> None:
    args = arguments()
    once = BegunOnce(SimpleNamespace(), args)
    interrupted(args, once, 4, tmp_path)
    assert not list(tmp_path.glob("*"))
    once.again(3, newcomer=False)
    train(args, once, 3, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


class Nvtx:
    """torch.autograd.profiler.emit_nvtx, without a GPU."""

    def __init__(self) -> None:
        self.left = False

    def __exit__(self, *error: Any) -> None:
        self.left = True


@pytest.mark.parametrize(("running", "ended"), [(True, True), (False, False)])
def test_nsys_is_ended_if_it_runs(monkeypatch: pytest.MonkeyPatch, running: bool, ended: bool) -> None:
    stopped: list[bool] = []
    cuda = SimpleNamespace(cudaProfilerStop=lambda: stopped.append(True))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "check_error", lambda code: None)
    monkeypatch.setattr(torch.autograd, "_profiler_enabled", lambda: running)
    args, nvtx = arguments(use_pytorch_profiler=False), Nvtx()
    BegunOnce(SimpleNamespace(), args).leave({"prof": None, "nsys_nvtx_context": nvtx})
    assert nvtx.left is ended and bool(stopped) is ended


@pytest.mark.parametrize(("goes_on_from", "start", "on"), [(1, 3, True), (3, 3, True), (5, 5, True), (6, 3, False)])
def test_nsys_begins_where_it_was(goes_on_from: int, start: int, on: bool) -> None:
    args = arguments(use_pytorch_profiler=False)
    once = BegunOnce(SimpleNamespace(), args)
    once.again(goes_on_from, newcomer=False)
    assert (args.profile, args.profile_step_start, args.profile_step_end) == (on, start, 6)
    assert args.run_workload_inspector_server is False
    once.first_step()
    assert (args.profile, args.profile_step_start, args.run_workload_inspector_server) == (on, 3, True)
    once.again(goes_on_from, newcomer=True)
    assert args.run_workload_inspector_server is True


def detector(monkeypatch: pytest.MonkeyPatch) -> Any:
    """megatron-core's, as configure() leaves it where there is a GPU."""

    class Event:
        def record(self) -> None:
            pass

    monkeypatch.setattr(StragglerDetector, "_configured", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: Event())
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    found = object.__new__(StragglerDetector)
    StragglerDetector.__init__(found)
    found.configure(2, 1, enabled=True, prefill=4)
    return found


def test_straggler_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured of an interrupted iteration has a begin and no end: asking for its length fails on a GPU."""
    theirs = detector(monkeypatch)
    args = arguments(profile=False, log_straggler=True)
    once = BegunOnce(SimpleNamespace(stimer=theirs), args)
    saved = once.save()
    assert saved["straggler"] is True
    theirs.start()
    once.leave({})
    assert theirs.start_gemm_ev == [] and theirs.stop_gemm_tm == []
    theirs._off, theirs.start = True, theirs.null_method  # train() of a replacement switches it as the arguments say
    once.load(saved)
    once.again(4, newcomer=True)
    once.first_step()
    assert theirs.enabled and theirs.start == theirs.start_method and theirs.stop == theirs.stop_method
    theirs._off = True  # switched off by a request meanwhile: no failure, so it stays
    once.first_step()
    assert not theirs.enabled


def test_energy_goes_on_from_the_version() -> None:
    monitor = EnergyMonitor()
    args = arguments(profile=False, log_energy=True)
    once = BegunOnce(SimpleNamespace(get_energy_monitor=lambda: monitor), args)
    monitor._total_energy, monitor._lap_energy = 500, 20
    saved = once.save()
    monitor._total_energy, monitor._lap_energy = 900, 0
    once.load(saved)
    assert (monitor._total_energy, monitor._lap_energy) == (500, 20)


def test_a_replacement_counts_the_minutes_of_the_job() -> None:
    args = arguments(profile=False)
    first, replacement = SimpleNamespace(_TRAIN_START_TIME=100.0), SimpleNamespace(_TRAIN_START_TIME=900.0)
    BegunOnce(replacement, args).load(BegunOnce(first, args).save())
    assert replacement._TRAIN_START_TIME == 100.0


def test_arguments_that_a_version_lacks() -> None:
    args = SimpleNamespace()
    once = BegunOnce(SimpleNamespace(), args)
    once.load(once.save())
    once.again(3, newcomer=False)
    once.first_step()
    assert vars(args) == {}
