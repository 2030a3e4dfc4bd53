"""The engine's floor plan: which folder of ff_core/csrc may include which."""

from __future__ import annotations

import pytest

from ff_core.csrc.build import INCLUDE, KERNEL_IMAGE, SOURCE_DIR

FLOORS = (
    ("ff_engine.h",),
    ("base",),
    ("checksum", "random"),
    ("slots",),
    ("device", "transport"),
    ("writer", "receiver", "sender"),
    ("engine_api.cpp",),
)
"""From the bottom. A file may include files of its own folder and lower floors, never of another folder beside it."""
_FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
_FILES = sorted(
    file.relative_to(SOURCE_DIR).as_posix() for file in SOURCE_DIR.rglob("*") if file.suffix in (".cpp", ".h", ".cu")
)


def room(file: str) -> str:
    return file.partition("/")[0]


def wrong(file: str, included: str) -> str:
    """What is wrong with `file` including `included`, both named from SOURCE_DIR; "" if nothing is."""
    if not (SOURCE_DIR / included).is_file():
        return f'{file} includes "{included}": no such file in {SOURCE_DIR.name}; write its path from there'
    here, there = room(file), room(included)
    if here == there or _FLOOR[there] < _FLOOR[here]:
        return ""
    return f'{file} includes "{included}": {here} is on floor {_FLOOR[here]}, {there} on floor {_FLOOR[there]}'


@pytest.mark.parametrize("file", _FILES)
def test_includes_only_go_down(file: str) -> None:
    assert room(file) in _FLOOR, f"{room(file)} is on no floor"
    included = INCLUDE.findall((SOURCE_DIR / file).read_text())
    assert [text for name in included if name != KERNEL_IMAGE and (text := wrong(file, name))] == []


def test_every_room_of_the_plan_is_there() -> None:
    assert {room(file) for file in _FILES} == set(_FLOOR)


def test_an_include_that_goes_up_is_found() -> None:
    assert "floor 5" in wrong("slots/slot.cpp", "writer/writer.h")
    assert "floor 5" in wrong("sender/send_slot.cpp", "receiver/arrival.h")
    assert "floor 4" in wrong("transport/tcp.cpp", "device/device.h")
    assert "no such file" in wrong("slots/slot.cpp", "slot.h")
    assert wrong("writer/writer.cpp", "slots/slot.h") == ""
