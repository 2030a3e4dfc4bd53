"""Weights that are found changed: by the script, which is refused, or by the step that a death interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ff_core.errors import FailoverInterrupt, UnsupportedError
from tests.worker.one_rank import OneRank
from tests.worker.test_contract import Trainer


class Watched(Trainer):
    def only_stepped(self) -> list[Any]:
        return [("weights", self.weights)]


@pytest.fixture
def made() -> Iterator[tuple[OneRank, Watched]]:
    job, trainer = OneRank(), Watched()
    job.session.attach(trainer)
    job.session.start_training()
    for _ in range(2):
        trainer.iterate(job.session)
    yield job, trainer
    job.close()


def test_a_step_that_a_death_interrupts_is_no_edit(made: tuple[OneRank, Watched]) -> None:
    job, trainer = made
    with pytest.raises(FailoverInterrupt), job.session.step():
        trainer.step()
        job.lose()
    assert job.session.recover(FailoverInterrupt(1)) == 2 and trainer.is_at(2)


def test_an_edit_before_a_death_is_refused(made: tuple[OneRank, Watched]) -> None:
    job, trainer = made
    trainer.weights[0] = 7.0
    job.lose()
    with pytest.raises(UnsupportedError, match=r"wrote into weights .*<edits>"):
        job.session.recover(FailoverInterrupt(1))
