"""Which saves are made again after a failure, and what is left of those that are not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import FailoverInterrupt
from ff_megatron import saves, writers
from ff_megatron.saves import Saves

RANK, WORLD = 1, 4


class Timer:
    def __init__(self) -> None:
        self.running = False

    def start(self) -> None:
        assert not self.running
        self.running = True

    def stop(self) -> None:
        assert self.running
        self.running = False

    def reset(self) -> None:
        pass


class Job:
    """One rank of a training with --async-save. others: what the other ranks say in the collective."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.saved: list[tuple[int, bool]] = []
        self.persisted: list[str] = []
        self.waiting: list[int] = []
        self.newest = -1
        self.others: list[int] | FailoverInterrupt = [0, 0, 0]
        self.args = SimpleNamespace(
            save=str(folder), async_save=True, ckpt_format="torch_dist", num_floating_point_operations_so_far=0,
            non_persistent_ckpt_type="global", non_persistent_global_ckpt_dir=None,
        )  # fmt: skip
        session: Any = SimpleNamespace(
            rank=RANK, world_size=WORLD, version=0, persisted=lambda path, version: self.persisted.append(path)
        )
        timer = Timer()
        training: Any = SimpleNamespace(
            get_timers=lambda: lambda name, log_level=None: timer,
            save_checkpoint_and_time=self.save_and_time,
            print_rank_0=print,
        )
        self.saves = Saves(training, session, self.args)
        self.context = {"save_strategy": 1, "load_strategy": 2, "local_checkpoint_manager": 3}
        self.saves.begin({
            "model": [torch.nn.Linear(1, 1)], "optimizer": None, "opt_param_scheduler": None,
            "checkpointing_context": self.context, "train_data_iterator": None,
        })  # fmt: skip
        monkeypatch.setattr(writers, "waiting", lambda: self.waiting)
        monkeypatch.setattr(writers, "newest", lambda: self.newest)
        monkeypatch.setattr(writers, "give_up", lambda rank: self.waiting.clear())
        monkeypatch.setattr(saves.dist, "all_reduce", self.all_reduce)

    def all_reduce(self, tensor: torch.Tensor, op: Any) -> None:
        if isinstance(self.others, FailoverInterrupt):
            raise self.others
        tensor.copy_(torch.maximum(tensor, torch.tensor(self.others)))

    def save_and_time(self, iteration: int, *args: Any, non_persistent_ckpt: bool, train_data_iterator: Any) -> None:
        self.saved.append((iteration, non_persistent_ckpt))

    def save(self, iteration: int, temporary: bool = False) -> None:
        """save_checkpoint(), which leaves a folder and hands the rest to the background."""

        def original(iteration: int, non_persistent_ckpt: bool) -> None:
            self.folder(iteration, temporary).mkdir(parents=True)
            self.newest += 1
            self.waiting.append(self.newest)

        self.saves.save(original, inspect.signature(original).bind(iteration, temporary))

    def finalize(self, blocking: bool = False, over: Callable[[], None] = lambda: None) -> None:
        def original(blocking: bool = False) -> None:
            over()

        bound = inspect.signature(original).bind(blocking)
        self.saves.finalize(original, bound)

    def folder(self, iteration: int, temporary: bool = False) -> Path:
        return Path(self.args.save, *(["non_persistent"] if temporary else []), f"iter_{iteration:07d}")

    def fail(self, goes_on_from: int) -> None:
        self.saves.give_up()
        self.saves.again(goes_on_from)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_what_all_go_on_from_is_saved_instead(job: Job) -> None:
    job.save(4)
    job.fail(5)
    assert job.saved == [(5, False)] and not job.folder(4).exists()
    assert set(job.context) == {"local_checkpoint_manager"}  # a replacement has found nothing out
    job.fail(6)
    assert job.saved == [(5, False)]  # once


def test_the_loop_comes_to_it_again(job: Job) -> None:
    job.save(4)
    job.fail(3)
    assert job.saved == [] and not job.folder(4).exists()


def test_a_replacement_does_what_the_others_know(job: Job) -> None:
    job.others = [4, 0, WORLD]
    job.fail(5)
    assert job.saved == [(5, False)]


def test_what_is_over_is_not_made_again(job: Job) -> None:
    job.save(4)
    job.finalize(over=job.waiting.clear)
    assert job.persisted == [str(job.folder(4))]
    job.fail(5)
    assert job.saved == [] and job.folder(4).exists()


def test_a_folder_that_is_complete_stays(job: Job) -> None:
    job.save(4)
    (job.folder(4) / "metadata.json").touch()
    job.fail(5)
    assert job.folder(4).exists()


def test_one_rank_removes(job: Job) -> None:
    job.save(4)
    job.others = [4, 0, WORLD]  # rank 0 knows it too
    job.fail(5)
    assert job.folder(4).exists()


def test_a_second_failure_in_the_collective(job: Job) -> None:
    job.save(4)
    job.others = FailoverInterrupt(2)
    with pytest.raises(FailoverInterrupt):
        job.fail(5)
    job.others = [0, 0, 0]
    job.fail(6)
    assert job.saved == [(6, False)]


def test_temporary_ones(job: Job) -> None:
    job.save(4, temporary=True)
    job.fail(5)
    assert job.saved == [(5, True)] and not job.folder(4, temporary=True).exists()
    job.save(6, temporary=True)
    job.save(7)
    job.fail(8)
    assert job.saved[1:] == [(8, False)]  # one is enough, and it stays


def test_waiting_for_the_last_save_notices_failures(job: Job) -> None:
    """It asks again and again, in collectives."""
    job.save(4)
    asked: list[int] = []

    def over() -> None:
        asked.append(1)
        if len(asked) == 3:
            job.waiting.clear()

    job.finalize(blocking=True, over=over)
    assert len(asked) == 4 and job.persisted == [str(job.folder(4))]


def test_formats_of_one_file_per_rank_are_not_touched(job: Job) -> None:
    job.args.ckpt_format = "torch"
    job.save(4)
    job.fail(3)
    assert job.folder(4).exists()


def test_nothing_without_saves(job: Job) -> None:
    job.args.save = None
    job.others = FailoverInterrupt(2)
    job.fail(5)
