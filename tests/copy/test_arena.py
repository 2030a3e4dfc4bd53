from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_core.copy.arena import Arena, ArenaLayout, SlotState, arena_bytes
from ff_core.errors import CorruptSlotError, EngineError

LAYOUT = ArenaLayout(5, 50_000, 20_000, 1000, 3000, 4096)


@given(
    st.builds(
        ArenaLayout,
        rank=st.integers(0, 2**32 - 1),
        sent_bytes=st.integers(0, 300_000),
        local_bytes=st.integers(0, 300_000),
        blob_capacity=st.integers(0, 10_000),
        journal_capacity=st.integers(0, 10_000),
        chunk_bytes=st.integers(1, 40).map(lambda pages: pages * 4096),
        slots=st.integers(1, 5),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_layout(layout: ArenaLayout) -> None:
    """Formatted, passed on by descriptor, mapped again: same layout, empty slots, no journal, little overhead."""
    with Arena.create(layout) as arena:
        with Arena.from_fd(os.dup(arena.fd)) as other:
            assert other.layout == layout
            assert [info.state for info in other.slot_infos()] == [SlotState.EMPTY] * layout.slots
            assert other.journal() == b""
            content = layout.slots * (layout.payload_bytes + layout.blob_capacity) + 2 * layout.journal_capacity
            chunks = layout.slots * (layout.payload_bytes // layout.chunk_bytes + 2) * 4
            assert (
                content < arena.size == arena_bytes(layout) <= content + chunks + 4096 * (3 + 2 * 2 + layout.slots * 4)
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "slots is 0, allowed are 1 to 16"),
        ({"chunk_bytes": 5000}, "chunk_bytes is 5000, allowed are multiples of 4096"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"sent_bytes": -1}, "sent_bytes is -1"),
        ({"rank": 2**32}, "rank is 4294967296"),
        ({"sent_bytes": 2**60}, "sent_bytes is 1152921504606846976"),
        ({"sent_bytes": 2**46, "chunk_bytes": 4096}, "raise chunk_bytes"),
    ],
)
def test_bad_layout_is_named(change: dict[str, int], message: str) -> None:
    fields = {"rank": 0, "sent_bytes": 1000, **change}
    with pytest.raises(EngineError, match=message):
        arena_bytes(fields)
    with pytest.raises(EngineError, match=message):
        Arena.create(ArenaLayout(**fields))


def test_what_is_not_an_arena_is_refused() -> None:
    for content in (b"", b"x" * 100, b"\0" * 8192):
        fd = os.memfd_create("no-arena")
        os.write(fd, content)
        with pytest.raises(CorruptSlotError, match="not an arena"):
            Arena.from_fd(fd)
        with pytest.raises(OSError):
            os.fstat(fd)  # taken over, and closed


def test_damaged_or_short_file_is_refused() -> None:
    with Arena.create(LAYOUT) as arena:
        short = os.memfd_create("short")
        os.write(short, os.pread(arena.fd, arena.size - 4096, 0))
        with pytest.raises(CorruptSlotError, match=f"needs {arena.size} bytes, but {arena.size - 4096} are mapped"):
            Arena.from_fd(short)
        os.pwrite(arena.fd, b"\xff", 16)  # in the layout
        with pytest.raises(CorruptSlotError, match="header is damaged"):
            Arena.from_fd(os.dup(arena.fd))


def test_slot_out_of_range() -> None:
    with Arena.create(LAYOUT) as arena:
        for slot in (-1, 2):
            for call in (arena.slot_info, arena.verify, arena.blob, arena.empty):
                with pytest.raises(EngineError, match=f"slot is {slot}, the arena of rank 5 has slots 0 to 1"):
                    call(slot)


def test_journal_is_replaced_and_limited() -> None:
    with Arena.create(LAYOUT) as arena:
        for size in (1, 3000, 17, 0, 2999):
            data = os.urandom(size)
            arena.set_journal(data)
            assert arena.journal() == data
        with pytest.raises(EngineError, match="3001 bytes, its arena holds 3000"):
            arena.set_journal(b"x" * 3001)
        assert len(arena.journal()) == 2999


def test_damaged_journal_is_not_given_out() -> None:
    with Arena.create(LAYOUT) as arena:
        arena.set_journal(b"one")
        at = os.pread(arena.fd, arena.size, 0).index(b"one")
        os.pwrite(arena.fd, b"two", at)
        with pytest.raises(CorruptSlotError, match="journal of rank 5"):
            arena.journal()


def test_writer_killed_within_the_journal_leaves_the_old_one() -> None:
    """A process is killed again and again while it replaces the journal: what is read was always set whole."""
    layout = ArenaLayout(0, 0, 0, 0, 1 << 20, 4096)
    program = (
        "import sys; from ff_core.copy.arena import Arena; a = Arena.from_fd(int(sys.argv[1]))\n"
        "print('on', flush=True); n = 0\n"
        "while True:\n    n += 1; a.set_journal(bytes([n % 251]) * (900000 + n % 1000))"
    )
    with Arena.create(layout) as arena:
        arena.set_journal(b"first")
        for round_ in range(6):
            command = [sys.executable, "-c", program, str(arena.fd)]
            child = subprocess.Popen(command, pass_fds=[arena.fd], stdout=subprocess.PIPE)
            assert child.stdout is not None and child.stdout.readline() == b"on\n"
            for _ in range(200 * round_):
                os.getppid()
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            journal = arena.journal()
            assert journal == b"first" or (len(set(journal)) == 1 and len(journal) >= 900000)


def test_memory_outlives_the_mapping() -> None:
    with Arena.create(LAYOUT) as arena:
        arena.set_journal(b"kept")
        arena.notes()[:5] = b"noted"
        arena.notes()[-1] = 7
        fd = os.dup(arena.fd)
    with Arena.from_fd(fd) as again:
        assert again.journal() == b"kept"
        assert (bytes(again.notes()[:6]), again.notes()[-1]) == (b"noted\0", 7)
        assert again.layout == LAYOUT, "notes lie behind the header"
    assert again.fd == -1
    again.close()  # idempotent


def test_segments_of_restore_are_checked() -> None:
    from tests.copy.rig import Rig

    with Rig(sent=10_000, local=0, holders=0) as rig:
        rig.run(0, 0, 0)
        out = ctypes.create_string_buffer(100)
        address = ctypes.addressof(out)
        for segment, message in [
            ((address, 100, 9_901, -1), "segment 0: 100 bytes at offset 9901, the payload has 10000 bytes"),
            ((0, 100, 0, -1), "null pointer"),
            ((address, 100, 0, -3), "device is -3"),
        ]:
            with pytest.raises(EngineError, match=message):
                rig.own.restore(0, [segment])
        assert out.raw == b"\0" * 100
