"""Random generators of a script's own: states that come back, and digests that show every draw."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import codec, generators

KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g: torch.rand(3, generator=g).tolist()),
    "python": (lambda: random.Random(3), lambda g: [g.random(), g.gauss(0, 1)]),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.standard_normal(3).tolist()),
    "numpy, Mersenne": (lambda: np.random.Generator(np.random.MT19937(3)), lambda g: g.random(3).tolist()),
    "numpy, legacy": (lambda: np.random.RandomState(3), lambda g: g.randn(3).tolist()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back(kind: str) -> None:
    make, draw = KINDS[kind]
    one, other = make(), make()
    draw(one)
    state = codec.decode(codec.encode(generators.state_of(one)))
    wanted = draw(one)
    generators.set_state(other, state)
    assert draw(other) == wanted


@pytest.mark.parametrize("kind", [*KINDS, "numpy, bits"])
def test_one_is_made_where_none_is(kind: str) -> None:
    """The script makes it in its loop."""
    kinds = KINDS | {"numpy, bits": (lambda: np.random.PCG64(3), lambda g: g.random_raw(3).tolist())}
    make, draw = kinds[kind]
    one = make()
    draw(one)
    made = generators.new(codec.decode(codec.encode(generators.state_of(one))))
    assert type(made) is type(one) and draw(made) == draw(one)


def test_one_of_an_unknown_kind_is_not_made() -> None:
    for state in (generators.state_of(np.random.SeedSequence(1)), torch.zeros(16, dtype=torch.uint8), None):
        with pytest.raises((TypeError, ValueError)):
            generators.new(state)


@pytest.mark.parametrize("kind", KINDS)
def test_each_draw_shows_in_the_digest(kind: str) -> None:
    make, draw = KINDS[kind]
    one, other = make(), make()
    seen = [generators.digest(one)]
    for _ in range(20):
        draw(one)
        seen.append(generators.digest(one))
    assert len(set(seen)) == 21
    assert generators.digest(other) == seen[0]


def test_the_system_s_generator_has_no_state() -> None:
    assert not generators.is_generator(random.SystemRandom())
