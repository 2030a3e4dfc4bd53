"""DeepSpeed does not notice: same losses, same weights; and it initialises alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comm import programs_deepspeed
from tests.comm.harness import Job, run

ENVIRONMENT = {"DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Any]]:
    return run(2, programs_deepspeed.train, 3, env=ENVIRONMENT)


def test_equals_plain_gloo(trained: list[dict[str, Any]]) -> None:
    plain = run(2, programs_deepspeed.train, 3, env=ENVIRONMENT, swappable=False)
    for rank in range(2):
        assert {name: trained[rank][name] for name in plain[rank]} == plain[rank]


@pytest.mark.parametrize("rank", [0, 1])
def test_initialises_alone(trained: list[dict[str, Any]], rank: int) -> None:
    with Job(2) as job:
        job.start(
            rank,
            programs_deepspeed.train,
            0,
            epoch=1,
            solo=True,
            replay=trained[rank]["journal"],
            env=ENVIRONMENT,
        )
        alone = job.results()[0]
    assert alone["unused"] == []
    for name in ("world", "backend", "journal", "groups"):
        assert alone[name] == trained[rank][name]
