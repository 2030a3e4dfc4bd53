"""Saves under way in the background are given up whole: their processes, their numbers, their answers."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async

from ff_megatron import writers

fork = multiprocessing.get_context("fork")


def beginning(marks: Path) -> None:
    """A writer that has begun, with a process of its own for a file, as megatron-core's has."""
    child = fork.Process(target=time.sleep, args=(1000,))
    child.start()
    (marks / f"{child.pid}").touch()
    time.sleep(1000)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    found = async_utils.AsyncCallsQueue()
    started: list[bool] = []
    module = SimpleNamespace(_async_calls_queue=found, init_persistent_async_worker=lambda: started.append(True))
    monkeypatch.setitem(sys.modules, "megatron.training.async_utils", module)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)  # which they log
    found.started = started
    yield found
    for process in multiprocessing.active_children():
        process.kill()


def scheduled(queue: Any, target: Any, *args: Any) -> Any:
    """What schedule_async_request() leaves, of a writer that calls target(*args)."""
    process = fork.Process(target=target, args=args)
    process.start()
    caller = async_utils.TemporalAsyncCaller()
    caller.process, caller.start_time = process, time.time()
    queue.call_idx += 1
    queue.async_calls.append(async_utils._ActiveAsyncRequest(queue.call_idx, caller, None))
    return process


def test_nothing_is_written_any_more(queue: Any, tmp_path: Path) -> None:
    process = scheduled(queue, beginning, tmp_path)
    scheduled(queue, time.sleep, 1000)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    (child,) = (psutil.Process(int(mark.name)) for mark in tmp_path.iterdir())
    assert writers.waiting() == [0, 1] and writers.newest() == 1
    writers.give_up(0)
    process.join(30)
    child.wait(30)
    assert process.exitcode == -9
    assert writers.waiting() == [] and writers.newest() == -1  # as a replacement counts
    assert not queue.started


def test_an_answer_that_nobody_waits_for_is_gone(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with multiprocessing.Manager() as manager:
        results = manager.Queue()
        monkeypatch.setattr(filesystem_async, "_results_queue", results)
        results.put("of a save that was given up")
        writers.give_up(0)
        assert filesystem_async._results_queue is not results and filesystem_async._results_queue.empty()
        filesystem_async._results_queue.put("next")
        assert filesystem_async._results_queue.get(timeout=30) == "next"


def test_a_writer_that_stays_is_replaced_only_if_it_writes(queue: Any) -> None:
    queue.persistent = True
    writers.give_up(0)
    assert not queue.started
    scheduled(queue, time.sleep, 1000)
    writers.give_up(0)
    assert queue.started == [True]


def test_a_process_without_background_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.training.async_utils", SimpleNamespace(_async_calls_queue=None))
    writers.give_up(0)
    assert writers.waiting() == [] and writers.newest() == -1
