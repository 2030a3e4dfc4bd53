"""Objects of Python's library in variables. The form of a script: `tests.state.kinds`."""

from __future__ import annotations

import array
import asyncio
import configparser
import ctypes
import io
import multiprocessing
import queue
import sqlite3
import sys
import threading
from collections import ChainMap, UserDict, UserList
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.state import standard
from tests.state.kinds import Look, Numbers, Scripts, alone_with, repeated, replaced

SCRIPTS = script = Scripts()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone_with(monkeypatch, ModuleType("somelib"))


@script
def of_pythons_library(look: Look, numbers: Numbers) -> Any:
    values, text, data, wrapped = array.array("d", [0.0]), io.StringIO(), io.BytesIO(b"abc"), UserDict(n=0)
    entries, chain = UserList([1]), ChainMap({"a": 0}, {"b": 1})
    look(0)
    for n in numbers:
        values.append(values[-1] / 3 + n)
        text.write(f"{n},")
        data.seek(n)
        data.write(b"x")
        wrapped["n"] += n
        entries.append(n)
        chain["a"] += n
        look(n)
    return values, text.getvalue(), data.getvalue(), data.tell(), wrapped, entries, chain


@script
def queues(look: Look, numbers: Numbers) -> Any:
    first, last, least = queue.Queue[int](), queue.LifoQueue[int](), queue.PriorityQueue[int]()
    for each in (first, last, least):
        each.put(3)
        each.put(1)
    look(0)
    for n in numbers:
        for each in (first, last, least):
            each.put(n)
        first.get()
        first.task_done()
        last.get()
        look(n)
    return list(first.queue), first.unfinished_tasks, list(last.queue), [least.get() for _ in range(least.qsize())]


@script
def numbers_that_processes_share(look: Look, numbers: Numbers) -> Any:
    epoch, counts, rate = multiprocessing.Value("i", 0), multiprocessing.Array("d", 3), ctypes.c_double(1.0)
    look(0)
    for n in numbers:
        epoch.value += n
        counts[n % 3] += n
        rate.value /= 3
        look(n)
    return epoch.value, list(counts), rate.value


@script
def events_that_processes_share(look: Look, numbers: Numbers) -> Any:
    late, places, seen = multiprocessing.Event(), multiprocessing.Semaphore(9), []
    look(0)
    for n in numbers:
        seen.append((n, late.is_set(), places.get_value()))
        places.acquire()
        (late.clear if n == 5 else late.set)()
        look(n)
    return seen


@script
def what_coroutines_wait_for(look: Look, numbers: Numbers) -> Any:
    jobs, least = asyncio.Queue[int](), asyncio.PriorityQueue[int]()
    late, places = asyncio.Event(), asyncio.Semaphore(9)
    jobs.put_nowait(7)
    look(0)
    for n in numbers:
        for each in (jobs, least):
            each.put_nowait(n if n % 2 else -n)
        jobs.get_nowait()
        jobs.task_done()
        places._value -= 1
        late.set()
        look(n)
    left = [least.get_nowait() for _ in range(least.qsize())]
    return jobs.get_nowait(), jobs._unfinished_tasks, left, late.is_set(), places._value  # type: ignore[attr-defined]


@script
def a_config_parser(look: Look, numbers: Numbers) -> Any:
    config = configparser.ConfigParser(defaults={"rate": "0.5"})
    config.read_dict({"train": {"steps": "0"}})
    look(0)
    for n in numbers:
        config["train"]["steps"] = str(config.getint("train", "steps") + n)
        config["DEFAULT"]["rate"] = str(config.getfloat("train", "rate") / 2)
        config[f"epoch {n}"] = {"n": str(n)}
        look(n)
    return {name: dict(config[name]) for name in config}


def a_database_in_memory(look: Look, numbers: Numbers) -> Any:
    database = sqlite3.connect(":memory:")
    database.execute("create table losses (step integer, loss real)")
    look(0)
    for n in numbers:
        database.execute("insert into losses values (?, ?)", (n, n / 2))
        if n % 2:
            database.commit()
        look(n)
    return database.execute("select * from losses").fetchall()


if sys.version_info >= (3, 11):  # older ones cannot copy it
    script(a_database_in_memory)

test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_our_own_threads_are_none_of_the_script() -> None:
    """They run in every rank; their files may lie outside of what is installed."""
    asked = threading.Event()
    ours = threading.Thread(target=noted_until, args=(asked,))
    theirs = threading.Thread(target=lambda: asked.wait(60))
    ours.start()
    assert not standard.threads_of_script()
    theirs.start()
    assert standard.threads_of_script()
    asked.set()
    ours.join()
    theirs.join()


def noted_until(asked: threading.Event) -> None:
    asked.wait(60)


noted_until.__module__ = "ff_core.contract.link"


def a_queue_of_something_else(look: Look, numbers: Numbers) -> Any:
    jobs = queue.Queue[Any]()
    look(0)
    for n in numbers:
        jobs.put(torch.zeros(n))
        look(n)
    return jobs.qsize()


def test_what_cannot_be_put_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    script = a_queue_of_something_else
    wanted = f"{script.__name__}().jobs (Queue"
    assert [said[: len(wanted)] for said in replaced(script)[0]] == [wanted]
    assert [said[: len(wanted)] for said in repeated(script, monkeypatch)[0]] == [wanted]


def test_a_large_database_in_memory_is_named_and_one_in_a_file_is_left(tmp_path: Path) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table t (x blob)")
    before = standard.mark(database)
    database.execute("insert into t values (?)", (bytes(2 << 20),))
    assert standard.mark(database) != before
    with pytest.raises(ValueError, match="large"):
        standard.contents(database)
    old = SimpleNamespace(execute=sqlite3.connect(":memory:").execute, total_changes=1, Error=sqlite3.Error)
    with pytest.raises(ValueError, match="cannot copy"):
        standard._database(old)
    filed = sqlite3.connect(tmp_path / "t.db")
    assert standard.contents(filed) is None
    filed.close()
    assert standard.contents(filed) is None
