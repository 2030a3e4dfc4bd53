"""The status page: 64-bit words that a worker and its agent share, so that neither waits for the other's Python."""

from __future__ import annotations

import ctypes
import os
from enum import Enum
from time import monotonic

from ff_core.copy import memory
from ff_core.copy.binding import EHALTED, ETIMEOUT, check, engine
from ff_core.errors import EngineError

WORDS = ("magic", "w_stamp", "halt_epoch", "committed", "own_complete", "sealed", "live", "progress", "activity",
         "interval", "pause")  # fmt: skip
"""In the order of ff_status_page; csrc/ff_engine.h says who writes which."""
_MAGIC = 0x3165676170_4646  # "FFpage1"
# A wait inside C keeps Python from handling signals (Ctrl-C): it comes back that often.
_SLICE_S = 0.25


class WaitResult(Enum):
    REACHED = "reached"  # W is at least the stamp
    HALTED = "halted"  # a newer epoch was announced


class StatusPage:
    """A mapped status page. The agent creates it, the worker maps it from the inherited descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """The memory file, owned by this object."""
        self._mapping = memory.Mapping(fd, memory.PAGE)
        self.address = self._mapping.address

    @classmethod
    def create(cls, name: str = "ff-page") -> StatusPage:
        """A new page, all words 0 but the magic."""
        page = cls(memory.allocate(name, memory.PAGE))
        page.store("magic", _MAGIC)
        check(engine().ff_life_init(page.address))
        return page

    @classmethod
    def from_fd(cls, fd: int) -> StatusPage:
        """Map a page made elsewhere; takes `fd` over, also when it fails. EngineError: not a status page."""
        try:
            if os.fstat(fd).st_size != memory.PAGE:
                raise EngineError(f"descriptor {fd} has {os.fstat(fd).st_size} bytes, a status page has {memory.PAGE}")
            page = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        if page.load("magic") != _MAGIC:
            page.close()
            raise EngineError(f"descriptor {fd} is not a status page: its magic does not match")
        return page

    def _word(self, word: str) -> int:
        try:
            return self.address + 8 * WORDS.index(word)
        except ValueError:
            raise EngineError(f"the status page has no word {word!r}; it has {', '.join(WORDS)}") from None

    def load(self, word: str) -> int:
        """Value of a word, see WORDS."""
        value: int = engine().ff_page_load(self._word(word))
        return value

    def store(self, word: str, value: int) -> None:
        """Set a word, 0 to 2**64 - 1. Waiters are not woken: see notify()."""
        if not 0 <= value < 2**64:
            raise EngineError(f"status word {word} cannot be {value}, allowed are 0 to 2**64 - 1")
        engine().ff_page_store(self._word(word), value)

    def notify(self) -> None:
        """Wake everybody in wait_w(), in any process: w_stamp or halt_epoch changed."""
        engine().ff_page_notify(self.address)

    def wait_w(self, stamp: int, epoch: int, timeout_s: float) -> WaitResult:
        """Wait until halt_epoch > epoch (HALTED, looked at first) or w_stamp >= stamp (REACHED). TimeoutError, saying
        what W is.
        """
        end = monotonic() + timeout_s
        while True:
            left = end - monotonic()
            code = engine().ff_page_wait_w(
                self.address, stamp, epoch, int(max(0.0, min(left, _SLICE_S)) * 1000) + (left > 0)
            )
            if code == EHALTED:
                return WaitResult.HALTED
            if code == ETIMEOUT and left > _SLICE_S:
                continue
            check(code)
            return WaitResult.REACHED

    def hold_life(self) -> None:
        """Worker: from now on the death of the calling thread, which must be the main one, is seen by LifeWatch.

        EngineError if another thread holds it.
        """
        check(engine().ff_life_hold(self.address))

    def release_life(self) -> None:
        """Worker, in the thread of hold_life(): the process ends in order. EngineError in another thread."""
        check(engine().ff_life_release(self.address))

    def close(self) -> None:
        """Unmap and close the descriptor. Idempotent."""
        if self.fd < 0:
            return
        self._mapping.close()
        os.close(self.fd)
        self.fd = -1


class LifeWatch:
    """Agent: rings an eventfd when the thread that holds a page's life dies, long before waitpid would tell.

    None of the process's own code runs any more then; what its threads were doing in the kernel may still be ending.
    """

    def __init__(self, page: StatusPage, notify_fd: int) -> None:
        """page: held already; it must stay mapped until close().  notify_fd: duplicated."""
        handle = ctypes.c_void_p()
        check(engine().ff_life_watch_open(page.address, notify_fd, ctypes.byref(handle)))
        self._handle: ctypes.c_void_p | None = handle

    def close(self) -> None:
        """Stop watching: at once after the end of the process, within half a second before. Idempotent."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            check(engine().ff_life_watch_close(handle))
