"""Tiers and lanes: see tests/README.md."""

from __future__ import annotations

import faulthandler
import gc
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest import faulthandler as faulthandler_of_pytest

pytest.register_assert_rewrite("tests.state.kinds")  # it has tests that others take in
HERE = Path(__file__).parent
#: Whole trainings: several processes that each import torch and a framework, and keep two cores busy.
JOBS = (
    "e2e/", "deepspeed/test_end_to_end.py", "docs/", "scripts/test_train_gpt.py", "scripts/test_demo.py",
    "scripts/test_bench_recovery.py",
)  # fmt: skip
ENGINE = ("copy/", "csrc/")
#: Tests that share something dear: compiled objects, or a process with torch imported that ranks are forked from.
SHARING = ("comm/", "csrc/", "deepspeed/", "copy/test_ucx_waits.py", "copy/test_device.py")


def group(place: str) -> str | None:
    """Of a file under tests/. A group's tests run one after the other in one process; other tests anywhere."""
    if place.startswith(JOBS):
        return "jobs"
    return next((start for start in SHARING if place.startswith(start)), None)


def place(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).as_posix()


def pytest_itemcollected(item: pytest.Item) -> None:
    found = place(item)
    item.add_marker("jobs" if found.startswith(JOBS) else "engine" if found.startswith(ENGINE) else "units")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In xdist's processes groups come first, jobs before all: whoever is through with them takes from the rest."""
    if hasattr(config, "workerinput"):
        order = {"jobs": 0, None: 2}
        items.sort(key=lambda item: order.get(group(place(item)), 1))


def pytest_collection_finish() -> None:
    """What has been imported stays: no collection of garbage needs to look through it, of the hundreds to come."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Who is given more time than others (pytest.mark.timeout) is not ended by faulthandler_timeout before."""
    mark = item.get_closest_marker("timeout")
    if mark is not None and faulthandler_of_pytest.get_timeout_config_value(item.config) > 0:
        file = item.config.stash[faulthandler_of_pytest.fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(mark.args[0] + 60, file=file, exit=True)


@pytest.fixture(autouse=True)
def script_is_this_module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is the script's to the product, so all modules of tests would be. A test has its own, and
    what it imports: looking through all of them takes seconds, and tests would depend on their neighbours."""
    frames = sys.modules.get("ff_core.state.frames")
    if frames is not None:
        mine = {getattr(value, "__module__", None) for value in vars(request.module).values()}
        mine |= {request.module.__name__, *(v.__name__ for v in vars(request.module).values() if type(v) is ModuleType)}
        all_modules = frames.users_modules
        monkeypatch.setattr(frames, "users_modules", lambda: [
            name for name in all_modules() if name in mine or not name.rpartition(".")[2].startswith("test_")
        ])  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For --dist loadscope. (xdist's own loadgroup gives a test its group by changing its name, which pytest 9.2 does
    not allow any more: no group is kept together.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.removeprefix("tests/")) or nodeid

    return Lanes(config, log) if config.getvalue("dist") == "loadscope" else None
