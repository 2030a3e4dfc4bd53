"""Random generators that are objects of a script's own: which they are, and their states.

torch's (of the CPU and of CUDA devices), NumPy's old and new ones and what those draw their bits from, Python's. A new
one of NumPy also counts the children that it has spawned, and so does a SeedSequence, which is one of them here.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import torch

from ff_core.state import objects

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]


def is_generator(part: Any) -> bool:
    """Whether `part` draws random numbers: torch's, NumPy's or Python's."""
    kind = type(part)
    return _are_generators(kind) and (not issubclass(kind, torch.Generator) or part.device.type in ("cpu", "cuda"))


@objects.cached
def _are_generators(kind: type) -> bool:
    """Asked of every value of every variable."""
    if issubclass(kind, random.Random):
        return not issubclass(kind, random.SystemRandom)
    return issubclass(kind, torch.Generator) or (
        np is not None
        and issubclass(
            kind, (np.random.Generator, np.random.RandomState, np.random.SeedSequence, np.random.BitGenerator)
        )
    )


def is_global(part: Any) -> bool:
    """Whether it is the generator behind the functions of `random` or `numpy.random`: see `ff_core.state.rng`."""
    return part is random.random.__self__ or (np is not None and part is np.random.get_state.__self__)  # type: ignore[attr-defined]


def state_of(generator: Any) -> Any:
    """A copy of its state, to be encoded (see ff_core.state.codec)."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, np.random.SeedSequence):
        return generator.__reduce__()[2]
    bits = _bits(generator)
    return {"state": _copied(bits.state), "spawned": _spawned(bits), "bare": bits is generator}


def same(one: Any, other: Any) -> bool:
    """Whether two states, as of state_of(), are equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(part, other[key]) for key, part in one.items())
    if isinstance(one, tuple) and len(one) < 8:
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if np is not None and isinstance(one, np.ndarray) else bool(one == other)


def digest(generator: Any) -> int:
    """CRC32 of its state."""
    return _digest(state_of(generator), 0)


def set_state(generator: Any, state: Any) -> None:
    """Raises TypeError or ValueError if `state` is one of another kind of generator."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.SeedSequence):
        generator.__setstate__(state)  # type: ignore[attr-defined]
    else:
        bits = _bits(generator)
        bits.state = state["state"]
        if _spawned(bits) != state["spawned"]:
            seeds = bits.seed_seq.state | {"n_children_spawned": state["spawned"]}
            bits.__setstate__((bits.state, np.random.SeedSequence(**seeds)))


def new(state: Any) -> Any:
    """One in this state. Raises TypeError or ValueError where the state does not tell of which kind."""
    made: Any = None
    if isinstance(state, torch.Tensor):
        made = torch.Generator()
    elif isinstance(state, dict) and "bare" in state:
        bits = getattr(np.random, state["state"]["bit_generator"])()
        made = bits if state["bare"] else np.random.Generator(bits)
    elif isinstance(state, (tuple, list)):
        made = np.random.RandomState() if state[0] == "MT19937" else random.Random()
    if made is None:
        raise TypeError("what kind of generator it was is not known")
    try:
        set_state(made, state)
    except RuntimeError as error:  # a state of another device
        raise ValueError(str(error)) from None
    return made


def _bits(generator: Any) -> Any:
    return getattr(generator, "bit_generator", generator)


def _spawned(bits: Any) -> int:
    seeds = getattr(bits, "seed_seq", None)
    return seeds.n_children_spawned if isinstance(seeds, np.random.SeedSequence) else 0


def _digest(state: Any, digest: int) -> int:
    if isinstance(state, torch.Tensor):
        return zlib.crc32(state.numpy().tobytes(), digest)
    if np is not None and isinstance(state, np.ndarray):
        return zlib.crc32(state.tobytes(), digest)
    if isinstance(state, dict):
        state = tuple(state.values())
    if isinstance(state, tuple) and len(state) < 8:  # Python's own words are a longer one, of numbers only
        for part in state:
            digest = _digest(part, digest)
        return digest
    return zlib.crc32(repr(state).encode(), digest)


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state.copy() if np is not None and isinstance(state, np.ndarray) else state
