"""training_log() goes on after a failure with what it had summed up, and writes nothing twice."""

from __future__ import annotations

import inspect
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.state import codec
from ff_megatron.training_log import TrainingLog

CPU = torch.device("cpu")
INTERVAL, LAST = 3, 12


class Timer:
    """As Megatron's: `_elapsed` without what runs now."""

    def __init__(self) -> None:
        self._elapsed, self._started, self._start_time = 0.0, True, time.time()

    def set_elapsed(self, value: float) -> None:
        self._elapsed = value


class Megatron:
    """train() of one process: what it does for the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.timer = Timer()
        self.training: Any = SimpleNamespace(
            print_rank_last=self.lines.append,
            get_tensorboard_writer=lambda: self.lines,
            get_timers=lambda: lambda name, log_level=None: self.timer,
            training_log=self.training_log,
        )
        self.log = TrainingLog(self.training)

    def training_log(
        self, loss_dict: Any, total_loss_dict: Any, iteration: int, report_memory_flag: bool, is_first_iteration: bool
    ) -> bool:
        total_loss_dict["count"] = total_loss_dict.get("count", 0) + 1
        total_loss_dict["lm loss"] = total_loss_dict.get("lm loss", torch.zeros(1)) + loss_dict["lm loss"]
        writer = self.training.get_tensorboard_writer()
        if writer is not None:
            writer.append(f"point {iteration}")
        if iteration % INTERVAL == 0 or is_first_iteration:
            self.training.print_rank_last(
                f"{iteration}: {float(total_loss_dict['lm loss']) / total_loss_dict['count']}"
            )
            if report_memory_flag:
                self.training.print_rank_last("memory")
                report_memory_flag = iteration < 2
            if not is_first_iteration:
                total_loss_dict["count"], total_loss_dict["lm loss"] = 0, torch.zeros(1)
        return report_memory_flag

    def train(self, begin: int, end: int) -> dict[int, bytes]:
        """The iterations after `begin`. Returns the saved state of each version."""
        totals: dict[str, Any] = {}
        report, saved = True, {begin: codec.encode(self.log.save())}
        signature = inspect.signature(self.training_log)
        for iteration in range(begin + 1, end + 1):
            loss = {"lm loss": torch.tensor(float(iteration * iteration))}
            bound = signature.bind(loss, totals, iteration, report, is_first_iteration=iteration == begin + 1)
            report = self.log.iteration(self.training_log, bound, CPU)
            saved[iteration] = codec.encode(self.log.save())
        return saved


def uninterrupted() -> list[str]:
    reference = Megatron()
    reference.train(0, LAST)
    assert "memory" in reference.lines and len(reference.lines) > LAST + 4
    return reference.lines


@pytest.mark.parametrize("back", range(LAST))
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_survivors_log_is_the_uninterrupted_one(back: int, ahead: int) -> None:
    process = Megatron()
    saved = process.train(0, min(back + ahead, LAST))
    process.log.load(codec.decode(saved[back]))
    process.train(back, LAST)
    assert process.lines == uninterrupted()


@pytest.mark.parametrize("back", range(LAST))
def test_a_replacement_goes_on_with_the_dead_ranks_log(back: int) -> None:
    dead, replacement = Megatron(), Megatron()
    saved = dead.train(0, back)
    replacement.log.load(codec.decode(saved[back]))
    replacement.train(back, LAST)
    assert dead.lines + replacement.lines == uninterrupted()


def test_the_time_of_a_failure_is_left_out() -> None:
    process = Megatron()
    process.timer._elapsed, process.timer._start_time = 5.0, time.time() - 2.0
    saved = process.train(0, 4)[4]
    process.timer._start_time = time.time() - 100.0  # recovering
    process.log.load(codec.decode(saved))
    process.train(4, 5)
    assert process.timer._elapsed == pytest.approx(7.0, abs=0.5)


@pytest.mark.parametrize("complete", [True, False])
def test_an_evaluation_is_printed_once(complete: bool) -> None:
    process = Megatron()

    def evaluate_and_print_results(prefix: str, halted: bool) -> None:
        if halted:
            raise RuntimeError("halted")
        process.training.print_rank_last(f"validation at {prefix}")

    def evaluate(halted: bool) -> None:
        bound = inspect.signature(evaluate_and_print_results).bind("iteration 4", halted)
        process.log.evaluation(evaluate_and_print_results, bound)

    if complete:
        evaluate(False)
    else:
        with pytest.raises(RuntimeError):
            evaluate(True)
    evaluate(False)
    assert process.lines == ["validation at iteration 4"]
    assert process.training.print_rank_last == process.lines.append
