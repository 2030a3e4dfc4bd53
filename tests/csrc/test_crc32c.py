from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build
from tests.copy.frames import crc32c
from tests.csrc.programs import build_program

# RFC 3720, B.4, and the check value of the polynomial.
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize(("data", "want"), VECTORS)
def test_vectors(data: bytes, want: int) -> None:
    assert crc32c(data) == want


def test_chains() -> None:
    data = bytes(range(256)) * 300
    for cut in (0, 1, 7, 4032, 50000, len(data)):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_every_implementation_agrees(tmp_path: Path) -> None:
    """Hardware, portable and fused copy give the same over lengths, alignments and cuts."""
    files = [file for file in build.sources() if file.parent.name == "checksum"]
    files.append(Path(__file__).with_name("crc_check.cpp"))
    command = build_program("crc_check", files, tmp_path, "undefined")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("chosen portable ") and done.stdout.endswith(" ok\n"), done.stdout + done.stderr
    assert done.stderr == "", "the undefined-behaviour sanitizer complained"
