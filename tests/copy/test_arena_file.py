"""One version as a file: what was written comes back, and whatever is not what was written is refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ff_core.copy import arena_file
from ff_core.copy.arena import Arena, ArenaLayout, SlotState
from ff_core.copy.binding import CopyCancelled
from ff_core.errors import CorruptSlotError, EngineError
from tests.copy.rig import Rig

EPOCH, VERSION = 4, 12
JOURNAL = b"what the groups brought" * 20


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(holders=1) as made:
        made.own.set_journal(JOURNAL)
        made.connect(EPOCH)
        yield made


def filed(source: Arena, path: Path) -> int:
    with Arena.create(arena_file.room_for(source.layout)) as room:
        arena_file.take(source, EPOCH, VERSION, room)
        return arena_file.write(room, path, lambda: None)


def into(layout: ArenaLayout, path: Path, size: int) -> Arena:
    target = Arena.create(layout)
    try:
        with arena_file.read(path, size) as source:
            arena_file.put(source, 9, target)
    except BaseException:
        assert target.slot_info(0).state is SlotState.EMPTY, "half a version is in the slot"
        target.close()
        raise
    return target


def test_a_version_comes_back(rig: Rig, tmp_path: Path) -> None:
    content = rig.run(1, EPOCH, VERSION, b"scalars of 12")
    path = tmp_path / "rank.slot"
    size = filed(rig.own, path)
    assert size == path.stat().st_size and list(tmp_path.iterdir()) == [path]
    with into(rig.own.layout, path, size) as target:
        info = target.slot_info(0)
        assert (info.complete, info.epoch, info.version, info.full) == (True, 9, VERSION, True)
        assert rig.restored(target, 0) == content
        assert target.blob(0) == b"scalars of 12" and target.journal() == JOURNAL
        assert not target.slot_info(1).complete


def test_a_replica_comes_back_into_an_own_arena(rig: Rig, tmp_path: Path) -> None:
    """Without the local part, which it never had: the slot says so."""
    content = rig.run(0, EPOCH, VERSION)
    size = filed(rig.holders[0], tmp_path / "rank.slot")
    with into(rig.own.layout, tmp_path / "rank.slot", size) as target:
        info = target.slot_info(0)
        assert (info.version, info.full, info.payload_bytes) == (VERSION, False, rig.sent)
        with Arena.create(replace(rig.own.layout, local_bytes=0)) as other:
            target.copy_slot(0, other, 1)
            assert rig.restored(other, 1) == content[: rig.sent]


def test_other_versions_and_ranks_are_refused(rig: Rig) -> None:
    rig.run(0, EPOCH, VERSION)
    with Arena.create(arena_file.room_for(rig.own.layout)) as room:
        with pytest.raises(CorruptSlotError, match="no complete slot of version 13"):
            arena_file.take(rig.own, EPOCH, VERSION + 1, room)
    for change in ({"rank": 4}, {"sent_bytes": 99_999}, {"chunk_bytes": 4096}, {"local_bytes": 40_000}):
        with Arena.create(replace(rig.own.layout, **change)) as other:
            with pytest.raises(EngineError, match="does not fit an arena of rank"):
                rig.own.copy_slot(0, other, 0)
            assert other.slot_info(0).state is SlotState.EMPTY


def test_a_slot_that_is_written_anew_is_never_taken_in_half(rig: Rig) -> None:
    """Training overwrites the slot while it is copied, again and again: each copy is whole, or there is none."""
    done = threading.Event()
    contents = {VERSION: rig.run(0, EPOCH, VERSION)}
    found = {"whole": 0, "none": 0}

    def train() -> None:
        for version in range(VERSION + 1, VERSION + 150):
            contents[version] = rig.run(0, EPOCH, version)
        done.set()

    thread = threading.Thread(target=train)
    with Arena.create(arena_file.room_for(rig.own.layout)) as room:
        thread.start()
        while not done.is_set() or not found["whole"]:
            try:
                rig.own.copy_slot(0, room, 0)
            except (CopyCancelled, CorruptSlotError):
                found["none"] += 1
                assert not room.slot_info(0).complete
                continue
            found["whole"] += 1
            room.verify(0)
            version = room.slot_info(0).version
            assert rig.restored(room, 0) == contents.get(version, rig.restored(room, 0))
        thread.join()
    assert found["whole"] and found["none"], found


def test_damage_in_the_slot_is_not_passed_on(rig: Rig) -> None:
    rig.run(0, EPOCH, VERSION)
    rig.own.corrupt(0, 70_000)
    with Arena.create(arena_file.room_for(rig.own.layout)) as room:
        with pytest.raises(CorruptSlotError, match="checksum of chunk 8"):
            arena_file.take(rig.own, EPOCH, VERSION, room)
        assert room.slot_info(0).state is SlotState.EMPTY


def test_any_flipped_bit_that_counts_is_noticed(rig: Rig, tmp_path: Path) -> None:
    """What is between the parts, and the notes of the iteration, belongs to no version: a bit there changes nothing."""
    content = rig.run(0, EPOCH, VERSION, b"scalars of 12")
    path = tmp_path / "rank.slot"
    size = filed(rig.own, path)
    good = path.read_bytes()
    draw = random.Random(1)
    places = {draw.randrange(size) for _ in range(150)} | {0, 9, 30, good.index(JOURNAL[:9]), good.index(b"scalars of")}
    noticed = 0
    for place in sorted(places):
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            with into(rig.own.layout, path, size) as target:
                assert (rig.restored(target, 0), target.blob(0)) == (content, b"scalars of 12"), place
                assert target.journal() == JOURNAL and target.slot_info(0).version == VERSION, place
        except (CorruptSlotError, EngineError):
            noticed += 1
    assert noticed > len(places) / 2


@pytest.mark.parametrize("kept", [0, 100, 5000, -4096, -1])
def test_a_torn_file_is_refused(rig: Rig, tmp_path: Path, kept: int) -> None:
    rig.run(0, EPOCH, VERSION)
    path = tmp_path / "rank.slot"
    size = filed(rig.own, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptSlotError, match=f"not {size}"):
        into(rig.own.layout, path, size)
    with pytest.raises((CorruptSlotError, EngineError)):
        into(rig.own.layout, path, path.stat().st_size)


def test_a_write_that_ends_early_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    rig.run(0, EPOCH, VERSION)

    def enough() -> None:
        raise KeyboardInterrupt

    with Arena.create(arena_file.room_for(rig.own.layout)) as room:
        arena_file.take(rig.own, EPOCH, VERSION, room)
        with pytest.raises(KeyboardInterrupt):
            arena_file.write(room, tmp_path / "rank.slot", enough)
    assert list(tmp_path.iterdir()) == []
