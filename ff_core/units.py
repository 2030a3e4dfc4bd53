"""Byte sizes as people write them: "64MiB", "2 GiB", "10Gbit/s"; and back.

Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) and all bit units powers of 1000.
"""

from __future__ import annotations

import re

_BYTES = {
    "": 1, "b": 1,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}
_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes in a text such as "2GiB", "1.5 MiB" or "4096". Raises ValueError for anything else."""
    return _parse(text, _BYTES)


def parse_rate(text: str) -> int:
    """Bytes per second in a text such as "500MiB/s", "10Gbit/s" or "1000". Raises ValueError for anything else."""
    amount = text.strip()
    if amount.lower().endswith("/s"):
        amount = amount[:-2]
    return _parse(amount, _BYTES, _BITS)


def _parse(text: str, per_byte: dict[str, int], per_bit: dict[str, int] | None = None) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    number, unit = match.group(1), match.group(2).lower()
    whole, _, fraction = number.partition(".")
    # Integer arithmetic: a float would lose bytes above 2**53.
    scaled, divisor = int(whole + fraction), 10 ** len(fraction)
    if unit in per_byte:
        return scaled * per_byte[unit] // divisor
    if per_bit is not None and unit in per_bit:
        return scaled * per_bit[unit] // divisor // 8
    known = [name for name in (*per_byte, *(per_bit or ())) if name]
    raise ValueError(f"unknown unit {match.group(2)!r}; known (case does not matter): {', '.join(known)}")


def format_bytes(count: float) -> str:
    """ "17 B", "1.50 MiB": three digits, binary units."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count:.0f} B"
