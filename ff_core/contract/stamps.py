"""A stamp is (epoch, version) in one number that compares like the pair: `epoch << 40 | (version + 1)`. 0: none."""

from __future__ import annotations

VERSION_BITS = 40
MAX_EPOCH = (1 << 23) - 1
MAX_VERSION = (1 << VERSION_BITS) - 2
_MASK = (1 << VERSION_BITS) - 1


def stamp(epoch: int, version: int) -> int:
    """The stamp of `version` in `epoch`. version -1 ("none yet") is below every version of its epoch.

    Raises ValueError outside of epoch 0 to 2**23 - 1 and version -1 to 2**40 - 2.
    """
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch is {epoch}, allowed are 0 to {MAX_EPOCH}")
    if not -1 <= version <= MAX_VERSION:
        raise ValueError(f"version is {version}, allowed are -1 to {MAX_VERSION}")
    return epoch << VERSION_BITS | (version + 1)


def epoch_of(value: int) -> int:
    """The epoch of a stamp."""
    return value >> VERSION_BITS


def version_of(value: int) -> int:
    """The version of a stamp; -1: none."""
    return (value & _MASK) - 1
