"""Any cut of the payload into segments, with gaps, arrives and comes back bit by bit; corruption never does."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.writer import Writer
from ff_core.errors import CorruptSlotError, EngineError
from tests.copy.rig import Live, Rig, eventually

CUTS = st.lists(st.integers(0, 200_000), max_size=60)


@given(
    sent=st.integers(0, 100_000),
    local=st.integers(0, 100_000),
    cuts=CUTS,
    pages=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(sent: int, local: int, cuts: list[int], pages: int, seed: int) -> None:
    size = sent + local
    live, rng = Live(size, seed), random.Random(seed)
    content = bytes(live.memory)
    kept = [s for s in live.segments(*sorted(cut for cut in cuts if cut < size)) if rng.random() < 0.8]
    covered = bytearray(size)
    for _, length, offset, _ in kept:
        covered[offset : offset + length] = b"\1" * length
    want = bytes(byte if here else 0 for byte, here in zip(content, covered, strict=True))
    rng.shuffle(kept)
    with Arena.create(ArenaLayout(1, sent, local, 64, 64, pages * 4096)) as arena, Writer(arena) as writer:
        writer.set_segments(kept)
        for version in range(2):  # the second one over the first one's bytes
            writer.begin(0, 0, version)
            writer.seal(version, b"blob")
            eventually(lambda version=version: arena.find(0, version) == 0)
        arena.verify(0)
        out = Live(size, seed + 1)
        arena.restore(0, out.segments(size // 3, size // 2))
        assert bytes(out.memory) == want
        out.fill(seed + 2)
        arena.restore(0, [(out.address + offset, length, offset, -1) for _, length, offset, _ in kept])
        assert all(out.memory[i] == content[i] for i in range(size) if covered[i])


def test_ten_thousand_fragments() -> None:
    fragment = 123
    with Rig(sent=10_000 * fragment, local=0) as rig:
        order = [rig.live.segment(i * fragment, (i + 1) * fragment) for i in range(10_000)]
        random.Random(1).shuffle(order)
        rig.writer.set_segments(order)
        rig.connect(1)
        content = rig.run(0, 1, 0)
        assert rig.restored(rig.own, 0) == rig.restored(rig.holders[0], 0) == content


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(1 << 20, 10, 99_995, -1)], "segment 0: 10 bytes at offset 99995, the payload has 100000 bytes"),
        ([(1 << 20, 2**63, 0, -1)], "segment 0: 9223372036854775808 bytes"),
        ([(1 << 20, 10, 2**64 - 5, -1)], "segment 0: 10 bytes at offset 18446744073709551611"),
        ([(0, 10, 0, -1)], "segment 0: 10 bytes at a null pointer"),
        ([(1 << 20, 10, 0, -2)], r"segment 0: device is -2, allowed are -1 \(host memory\) and CUDA devices from 0"),
        ([(1 << 20, 10, 0, 1), (1 << 20, 10, 64, 0)], "segment 1: device is 0, others are on device 1"),
        ([(1 << 20, 10, 0, 1000)], "CUDA device 1000: (this process sees|the CUDA driver's library cannot be loaded)"),
        (
            [(1 << 20, 10, 50, -1), (1 << 20, 10, 41, -1)],
            "overlap: 10 bytes at offset 41 and 10 bytes at offset 50",
        ),
    ],
)
def test_bad_segments_are_named(segments: list[tuple[int, int, int, int]], message: str) -> None:
    with Rig(sent=100_000, local=0, holders=0) as rig:
        with pytest.raises(EngineError, match=message):
            rig.writer.set_segments(segments)
        rig.run(0, 0, 0)  # the old ones still stand


def test_every_flipped_bit_is_found() -> None:
    """In the payload, the blob, the checksum table or the header: never loaded, and live memory is not touched."""
    with Rig(sent=30_000, local=10_000, holders=0) as rig:
        content = rig.run(0, 5, 3, b"some scalars")
        out = Live(40_000)
        rng = random.Random(0)
        for offset in (0, 8191, 8192, 29_999, 30_000, 39_999, *(rng.randrange(40_000) for _ in range(20))):
            rig.own.corrupt(0, offset)
            before = out.fill(offset)
            chunk = offset // 8192 if offset < 30_000 else 4 + (offset - 30_000) // 8192
            with pytest.raises(
                CorruptSlotError, match=rf"slot 0 of rank 3, version \(5, 3\): checksum of chunk {chunk} "
            ):
                rig.own.restore(0, out.segments(30_000))
            assert bytes(out.memory) == before
            rig.own.corrupt(0, offset)  # flips it back
        rig.own.restore(0, out.segments(30_000))
        assert bytes(out.memory) == content


def test_damaged_headers_and_tables() -> None:
    import mmap

    with Rig(sent=30_000, local=10_000, holders=0) as rig:
        rig.run(0, 5, 3, b"some scalars")
        view = mmap.mmap(rig.own.fd, rig.own.size)
        blob = view.find(b"some scalars")
        header, table = blob - 2 * 4096, blob - 4096
        found = set()
        for place in [*range(header + 12, header + 60), *range(table, table + 24), *range(blob, blob + 12)]:
            view[place] ^= 0x10
            try:
                rig.own.verify(0)
            except CorruptSlotError as error:
                found.add(str(error).rsplit("of the ", 1)[-1].split(": ")[-1])
            else:
                pytest.fail(f"a flipped bit at {place - header} from the slot's start was not noticed")
            view[place] ^= 0x10
        rig.own.verify(0)
        assert found == {"header is damaged", "checksum table does not match", "blob does not match"}
        view.close()


def test_restamped_slot_is_whole() -> None:
    with Rig(holders=0) as rig:
        content = rig.run(0, 1, 8)
        rig.own.restamp(0, 2)
        info = rig.own.slot_info(0)
        assert (info.epoch, info.version, info.complete) == (2, 8, True)
        assert rig.own.find(1, 8) is None and rig.own.find(2, 8) == 0
        assert rig.restored(rig.own, 0) == content
        rig.own.empty(0)
        assert not rig.own.slot_info(0).complete and rig.own.slot_info(0).version == -1
        with pytest.raises(CorruptSlotError, match="empty, not complete"):
            rig.own.restamp(0, 3)
