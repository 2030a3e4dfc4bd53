"""What of accelerate is replaced, with the real package."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler, skip_first_batches
from torch.utils.data import DataLoader

from ff_deepspeed import protection
from ff_deepspeed.trainers import accelerate


def orders(**given: Any) -> list[list[int]]:
    """Of three epochs."""
    torch.manual_seed(5)
    sampler = SeedableRandomSampler(range(20), **given)
    return [list(sampler) for _ in range(3)]


@pytest.mark.parametrize("given", [{}, {"data_seed": 3}], ids=["seed-of-torch", "data-seed"])
def test_a_sampler_whose_generator_is_there_from_the_begin_gives_the_same_order(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, int]
) -> None:
    original: Any = SeedableRandomSampler.__init__
    if hasattr(original, "__wrapped__"):
        original = original.__wrapped__
        monkeypatch.setattr(SeedableRandomSampler, "__init__", original)
    wanted = orders(**given)

    def make(sampler: Any, *args: Any, **kwargs: Any) -> None:
        accelerate._make_sampler(original, sampler, *args, **kwargs)
        assert sampler.generator is not None

    monkeypatch.setattr(SeedableRandomSampler, "__init__", make)
    assert orders(**given) == wanted
    sampler = SeedableRandomSampler(range(20), generator=torch.Generator().manual_seed(9))
    assert sampler.generator.initial_seed() == 9


def test_a_shortened_loader_is_the_same_loader() -> None:
    loader: Any = DataLoader(torch.arange(6.0), batch_size=2)  # type: ignore[arg-type]
    loader._ff_number = 5
    for shorter in (
        accelerate._skip_first_batches(skip_first_batches, loader, 1),
        accelerate._method_skip_first_batches(lambda accelerator, *args: skip_first_batches(*args), None, loader, 1),
    ):
        assert [batch.tolist() for batch in shorter] == [[2.0, 3.0], [4.0, 5.0]] and shorter._ff_number == 5


def test_a_replacement_that_passes_over_is_not_the_main_process_and_saves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = SimpleNamespace(passing=False)
    monkeypatch.setattr(protection, "current", lambda: found)
    saved: list[str] = []
    is_main = accelerate._not_while_passing(property(lambda state: state == 0))

    def both() -> tuple[bool, int]:
        accelerate._unless_passing(saved.append, "a file")
        assert is_main.fget is not None
        return is_main.fget(0), len(saved)

    assert both() == (True, 1)
    found.passing = True
    assert both() == (False, 1)
    monkeypatch.setattr(protection, "current", lambda: None)
    assert both() == (True, 2)
