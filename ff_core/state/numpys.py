"""The state of NumPy's global generator, read where it lies: `numpy.random.get_state()` goes through its 624 words one
by one, which takes longer than all other generators together.

    saved = state()    # plain values: ["MT19937", words as bytes, position, whether there is a spare Gaussian, it]
    set_state(saved)

Where the two last ones lie is found out once, in a generator made for that. Where they are not found, and for another
kind of generator (`numpy.random.set_bit_generator`), get_state() is asked.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

import numpy as np

_KIND = "MT19937"
_WORDS, _POSITION, _GAUSS = 624 * 4, struct.Struct("i"), struct.Struct("d")
_SENTINEL = -1.7976931348623157e-289


def state() -> Any:
    """Of the global generator, as plain values; a dict of NumPy's of another kind than usual."""
    generator: Any = np.random.get_state.__self__  # type: ignore[attr-defined]
    bits = generator._bit_generator
    if type(bits) is not np.random.MT19937:
        return np.random.get_state(legacy=False)
    places = _places()
    if places is None:
        kind, words, position, has_one, spare = _legacy(np.random)
        return [kind, words.tobytes(), position, has_one, spare if has_one else 0.0]
    flag, gauss = places
    raw = ctypes.string_at(bits.ctypes.state_address, _WORDS + _POSITION.size)
    has_one = ctypes.c_int.from_address(id(generator) + flag).value
    spare = ctypes.c_double.from_address(id(generator) + gauss).value if has_one else 0.0
    return [_KIND, raw[:_WORDS], *_POSITION.unpack_from(raw, _WORDS), has_one, spare]


def set_state(saved: Any) -> None:
    """Put `state()` back."""
    if isinstance(saved, dict):
        np.random.set_state(saved)
    else:
        kind, words, *rest = saved
        np.random.set_state((kind, np.frombuffer(words, dtype=np.uint32), *rest))


def _legacy(generator: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = generator.get_state()
    return found


@functools.cache
def _places() -> tuple[int, int] | None:
    """Offsets of the flag and of the spare Gaussian in a generator's memory; None: they are not found."""
    probe = np.random.RandomState(1)
    words = _legacy(probe)[1]
    bits = probe._bit_generator

    def memory(has_one: int, spare: float) -> bytes:
        probe.set_state((_KIND, words, 17, has_one, spare))
        return ctypes.string_at(id(probe), type(probe).__basicsize__)

    without, with_one = memory(0, _SENTINEL), memory(1, _SENTINEL)
    gauss = with_one.find(_GAUSS.pack(_SENTINEL))
    flags = [place for place, pair in enumerate(zip(without, with_one, strict=True)) if pair[0] != pair[1]]
    raw = ctypes.string_at(bits.ctypes.state_address, _WORDS + _POSITION.size)
    if raw != words.tobytes() + _POSITION.pack(17) or gauss < 0 or len(flags) != 1:
        return None
    flag = flags[0]
    if [ctypes.c_int.from_buffer_copy(held, flag).value for held in (without, with_one)] != [0, 1]:
        return None
    return flag, gauss
