"""A death is seen at once, an end in order is not taken for one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ff_core.copy.page import LifeWatch, StatusPage
from ff_core.errors import EngineError

DEADLINE_S = 20.0
HOLDER = """
import os, sys, threading, time
from ff_core.copy.page import StatusPage
page = StatusPage.from_fd(int(sys.argv[1]))
page.hold_life()
print("held", flush=True)
sys.stdin.readline()
{end}
"""


class Holder:
    def __init__(self, end: str) -> None:
        self.page, self.bell = StatusPage.create(), os.eventfd(0, os.EFD_NONBLOCK)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(end=end), str(self.page.fd)], pass_fds=(self.page.fd,),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"
        self.watch = LifeWatch(self.page, self.bell)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rung(self, timeout_s: float) -> bool:
        return bool(select.select([self.bell], [], [], timeout_s)[0])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.watch.close()
        self.page.close()
        os.close(self.bell)


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    made: list[Holder] = []
    yield made
    for holder in made:
        holder.close()


@pytest.mark.parametrize(
    "end",
    ["os.kill(os.getpid(), 9)", "os.abort()", "os._exit(0)", "os.execv('/bin/sleep', ['sleep', '100'])"],
)
def test_a_death_rings(holders: list[Holder], end: str) -> None:
    holder = Holder(end)
    holders.append(holder)
    assert not holder.rung(0.05), "it lives"
    holder.go()
    assert holder.rung(DEADLINE_S)


def test_killed_from_outside_while_other_threads_compute(holders: list[Holder]) -> None:
    holder = Holder("[threading.Thread(target=lambda: sum(iter(int, 1))).start() for _ in range(3)]; time.sleep(1000)")
    holders.append(holder)
    holder.go()
    assert not holder.rung(0.2)
    os.kill(holder.process.pid, signal.SIGKILL)
    assert holder.rung(DEADLINE_S)


def test_an_end_in_order_does_not_ring(holders: list[Holder]) -> None:
    holder = Holder("page.release_life()")
    holders.append(holder)
    holder.go()
    assert holder.process.wait(DEADLINE_S) == 0
    holder.watch.close()  # joins: nothing can ring after it
    assert not holder.rung(0)


def test_a_forked_child_is_not_the_process(holders: list[Holder]) -> None:
    end = "child = os.fork() or os._exit(0); os.waitpid(child, 0); print('over', flush=True); time.sleep(1000)"
    holder = Holder(end)
    holders.append(holder)
    holder.go()
    assert holder.process.stdout is not None and holder.process.stdout.readline() == "over\n"
    assert not holder.rung(0.2)
    holder.process.kill()
    assert holder.rung(DEADLINE_S)


def test_closing_a_watch_of_a_living_process(holders: list[Holder]) -> None:
    holder = Holder("time.sleep(1000)")
    holders.append(holder)
    holder.watch.close()
    holder.watch.close()
    holder.process.kill()
    holder.process.wait()
    assert not holder.rung(0)


def test_one_holder_per_page() -> None:
    page = StatusPage.create()
    page.hold_life()
    met: list[BaseException] = []

    def second(what: str) -> None:
        try:
            getattr(page, what)()
        except EngineError as error:
            met.append(error)

    for what in ("hold_life", "release_life"):
        thread = threading.Thread(target=second, args=(what,))
        thread.start()
        thread.join()
    assert "another thread is this page's life" in str(met[0]) and "this thread is not" in str(met[1])
    page.release_life()
    page.close()
