"""NumPy's global generator, read out of its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_core.state import numpys, rng


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    saved = np.random.get_state()
    yield
    np.random.set_state(saved)


def legacy() -> list[Any]:
    kind, words, position, has_one, spare = np.random.get_state()
    return [kind, words.tobytes(), position, has_one, spare]


def test_places_are_found_with_this_numpy() -> None:
    """Or each version would be slower, and nobody would see it."""
    assert numpys._places() is not None


DRAWS = st.lists(st.sampled_from(["rand", "randn", "standard_normal", "integers", "shuffle"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), DRAWS)
def test_state_is_what_numpy_says(seed: int, draws: list[str]) -> None:
    np.random.seed(seed)
    for draw in draws:
        {
            "rand": np.random.rand, "randn": np.random.randn, "standard_normal": lambda: np.random.standard_normal(3),
            "integers": lambda: np.random.randint(9), "shuffle": lambda: np.random.shuffle(np.arange(5)),
        }[draw]()  # fmt: skip
    saved, before = numpys.state(), legacy()
    assert saved == before if before[3] else saved[:4] == before[:4]
    first = [np.random.randn() for _ in range(5)], np.random.rand(700).tolist()
    numpys.set_state(saved)
    assert ([np.random.randn() for _ in range(5)], np.random.rand(700).tolist()) == first


def test_another_kind_of_generator_is_asked() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        saved = numpys.state()
        first = np.random.randn(3).tolist()
        numpys.set_state(saved)
        assert np.random.randn(3).tolist() == first and isinstance(saved, dict)
        digest = rng.digest()
        np.random.rand()
        assert rng.digest() != digest
    finally:
        np.random.set_bit_generator(before)


def test_without_places_numpy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.randn()  # a spare one is left
    saved = numpys.state()
    monkeypatch.setattr(numpys, "_places", lambda: None)
    assert numpys.state() == saved


def test_digest_is_of_every_generator() -> None:
    import random

    import torch

    found = {rng.digest()}
    for draw in (random.random, np.random.rand, lambda: torch.rand(1), lambda: random.gauss(0, 1), np.random.randn):
        draw()
        found.add(rng.digest())
    np.random.randn()  # the spare one: the words stay as they are
    found.add(rng.digest())
    assert len(found) == 7 and rng.digest() == rng.digest()
