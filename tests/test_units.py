from __future__ import annotations

import pytest

from ff_core.units import format_bytes, parse_bytes, parse_rate


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("17B", 17),
        ("1KiB", 1024),
        (" 1.5 MiB ", 3 * 2**19),
        ("2gib", 2**31),
        ("1TB", 10**12),
        ("9007199254740993", 2**53 + 1),  # a float would give 2**53
        ("8388608.000001TiB", 2**63 + 1099511),
    ],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "rate"), [("500MiB/s", 500 * 2**20), ("10Gbit/s", 1_250_000_000), ("7", 7)])
def test_parse_rate(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "1e9", "0x10", "1..5MiB", "1GiB/s"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="number with a unit"):
        parse_bytes(text)


def test_unknown_unit_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown unit 'foo'.*gib"):
        parse_bytes("3 foo")
    with pytest.raises(ValueError, match=r"unknown unit 'Gbit'"):
        parse_bytes("3 Gbit")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1024, "1.00 KiB"), (15 << 20, "15.0 MiB"), (3 << 38, "768 GiB"), (2**40, "1.00 TiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
