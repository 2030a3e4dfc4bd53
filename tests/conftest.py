"""Tiers and lanes: see tests/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: Tests that share something dear: compiled objects, or a process with torch imported that ranks are forked from.
SHARING = ("csrc/", "comm/", "deepspeed/", "copy/test_ucx_waits.py", "copy/test_device.py")


def tier(item: pytest.Item) -> str:
    """Whole trainings, which keep two cores busy: those of e2e/, those that say so, what is slow beside the engine."""
    place = item.path.relative_to(HERE).as_posix()
    if place.startswith(("copy/", "csrc/")):
        return "engine"
    job = place.startswith("e2e/") or item.get_closest_marker("jobs") or item.get_closest_marker("slow")
    return "jobs" if job else "units"


def group(item: pytest.Item) -> str | None:
    """xdist runs the tests of a group one after the other in one process; other tests anywhere."""
    if tier(item) == "jobs":
        return "jobs"
    place = item.path.relative_to(HERE).as_posix()
    return next((start.strip("/") for start in SHARING if place.startswith(start)), None)


def pytest_itemcollected(item: pytest.Item) -> None:
    if found := group(item):
        item.add_marker(pytest.mark.xdist_group(found))
    item.add_marker(tier(item))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In xdist's processes groups come first, jobs before all: whoever is through with them takes from the rest."""
    if hasattr(config, "workerinput"):
        order = {"jobs": 0, None: 2}
        items.sort(key=lambda item: order.get(group(item), 1))
