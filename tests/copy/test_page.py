from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ff_core.contract.stamps import stamp
from ff_core.copy.page import WORDS, StatusPage, WaitResult
from ff_core.errors import EngineError


@pytest.fixture
def page() -> StatusPage:
    return StatusPage.create()


def test_words_are_shared_by_descriptor(page: StatusPage) -> None:
    other = StatusPage.from_fd(os.dup(page.fd))
    for number, word in enumerate(WORDS[1:]):
        assert other.load(word) == 0
        page.store(word, 2**64 - 1 - number)
        assert other.load(word) == 2**64 - 1 - number
    other.close()


def test_bad_word_and_value(page: StatusPage) -> None:
    with pytest.raises(EngineError, match="no word 'w'; it has magic, w_stamp"):
        page.load("w")
    with pytest.raises(EngineError, match="live cannot be -1"):
        page.store("live", -1)


def test_what_is_not_a_page_is_refused() -> None:
    for size in (0, 100, 4096):
        fd = os.memfd_create("no-page")
        os.ftruncate(fd, size)
        with pytest.raises(EngineError, match="status page"):
            StatusPage.from_fd(fd)


def test_wait_sees_what_is_there(page: StatusPage) -> None:
    page.store("w_stamp", stamp(1, 5))
    assert page.wait_w(stamp(1, 5), 1, 0) is WaitResult.REACHED
    assert page.wait_w(stamp(1, 4), 1, 10) is WaitResult.REACHED
    with pytest.raises(TimeoutError, match=r"W did not reach \(1, 6\).*it is \(1, 5\)"):
        page.wait_w(stamp(1, 6), 1, 0)
    with pytest.raises(TimeoutError, match=r"W did not reach \(1, 6\)"):
        page.wait_w(stamp(1, 6), 1, 0.6)
    page.store("halt_epoch", 2)
    assert page.wait_w(stamp(1, 5), 1, 0) is WaitResult.HALTED, "a halt counts more than a W of the old epoch"
    assert page.wait_w(stamp(1, 5), 2, 0) is WaitResult.REACHED


@pytest.mark.parametrize("halt", [False, True])
def test_waiter_in_another_process_is_woken(page: StatusPage, halt: bool) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"w")
            result = page.wait_w(stamp(0, 9), 0, 60)
            os._exit(10 if result is WaitResult.HALTED else 11)
        finally:
            os._exit(1)
    os.read(reader, 1)
    for version in range(9):
        page.store("w_stamp", stamp(0, version))
        page.notify()
    page.store(*(("halt_epoch", 1) if halt else ("w_stamp", stamp(0, 9))))
    page.notify()
    _, status = os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(status) == (10 if halt else 11)


def test_signals_are_handled_while_waiting(page: StatusPage) -> None:
    """Ctrl-C ends a wait at the gate."""
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            page.wait_w(stamp(0, 0), 0, 60)
            time.sleep(60)  # the signal may be handled right behind the call
    finally:
        signal.signal(signal.SIGINT, before)
