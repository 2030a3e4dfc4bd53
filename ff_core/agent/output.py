"""A worker's output: read from its pipes line by line, shown with the rank in front, kept in the rank's log files.

A thread per worker does it, not the agent's event loop: a terminal or pipe that nobody reads would otherwise stop the
agent's heartbeats.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ff_core.contract.env import rank_dir

_TAIL_LINES = 400
#: A "line" that grows beyond this is passed on in pieces; a progress bar ends its lines with a carriage return.
_LONGEST_LINE = 1 << 16
_show_lock = threading.Lock()


def _show(fd: int, data: bytes) -> None:
    """Write whole lines to our own stdout or stderr; a reader that went away is not a reason to stop training."""
    with _show_lock, contextlib.suppress(OSError):
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]


class _Stream:
    """One pipe of the worker: the unfinished line, and where finished ones go."""

    def __init__(self, name: str, pipe: int, show_fd: int) -> None:
        self.name = name
        self.pipe = pipe
        self.show_fd = show_fd
        self.rest = b""
        self.file: BinaryIO | None = None

    def lines(self, data: bytes) -> list[bytes]:
        """Lines (with their ends) that `data` completes."""
        lines = (self.rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\r\0").replace(b"\n", b"\n\0").split(b"\0")
        self.rest = lines.pop()
        if len(self.rest) > _LONGEST_LINE:
            lines.append(self.rest)
            self.rest = b""
        return lines


class OutputPump:
    """Carries one worker's stdout and stderr from its pipes to the terminal, the log files and the tail.

    stdout, stderr: descriptors, owned from here on.  rank: None for a spare, whose lines are marked "[spare]".
    log_dir: files go to log_dir/rank<R>/stdout.log and stderr.log, appended to; a spare's to log_dir/spare<pid>/ until
    it has a rank; None: no files.
    show: pass lines on to our own stdout and stderr.  prefix: with "[<rank>]: " in front.
    drained(): called in the pump's thread once, when all that was written before `process_ended` has been passed on.
    Raises OSError if a log file cannot be opened.
    """

    def __init__(
        self, pid: int, stdout: int, stderr: int, *, rank: int | None, log_dir: Path | None, show: bool, prefix: bool,
        drained: Callable[[], None],
    ) -> None:  # fmt: skip
        self._pid = pid
        self._log_dir = log_dir
        self._show = show
        self._with_prefix = prefix
        self._drained = drained
        self._lock = threading.Lock()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._streams = [_Stream("stdout", stdout, 1), _Stream("stderr", stderr, 2)]
        self._label = b""
        self.set_rank(rank)
        self._wake_read, self._wake_write = os.pipe()
        for fd in (stdout, stderr, self._wake_read):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name=f"ff-output-{pid}", daemon=True)
        self._thread.start()

    def set_rank(self, rank: int | None) -> None:
        """From the next line on, mark and file lines under `rank`. Raises OSError if a log file cannot be opened."""
        with self._lock:
            name = "spare" if rank is None else str(rank)
            self._label = f"[{name}]: ".encode() if self._with_prefix else b""
            if self._log_dir is None:
                return
            directory = self._log_dir / f"spare{self._pid}" if rank is None else rank_dir(self._log_dir, rank)
            directory.mkdir(parents=True, exist_ok=True)
            for stream in self._streams:
                if stream.file is not None:
                    stream.file.close()
                # A replacement goes on in the dead rank's files. Unbuffered: what a file holds is complete at any time.
                stream.file = open(directory / f"{stream.name}.log", "ab", buffering=0)  # noqa: SIM115

    def tail(self, lines: int) -> list[str]:
        """The last lines of stderr, at most 400, without line ends."""
        with self._lock:
            return list(self._tail)[-lines:] if lines > 0 else []

    def process_ended(self) -> None:
        """The worker is dead: pass on what is left in the pipes, then call `drained`. To be called once."""
        os.write(self._wake_write, b"x")

    def _run(self) -> None:
        ended = told = False
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream.pipe, selectors.EVENT_READ, stream)
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            open_streams = len(self._streams)
            # Descendants of the worker may hold the pipes open after its end; their output is passed on too.
            while open_streams or not ended:
                for key, _ in selector.select():
                    if key.data is None:
                        ended = True
                        selector.unregister(self._wake_read)
                    elif not self._read(key.data):
                        selector.unregister(key.fd)
                        open_streams -= 1
                if ended and not told:
                    for stream in self._streams:
                        while stream.pipe in selector.get_map() and self._read(stream, only_available=True):
                            pass
                        self._flush(stream)
                    told = True
                    self._drained()
                    del self._drained  # the process and its pump no longer hold each other
        self._close()

    def _read(self, stream: _Stream, only_available: bool = False) -> bool:
        """Pass on one read's worth. False at the end of the pipe, or with `only_available` when nothing is there."""
        try:
            data = os.read(stream.pipe, 1 << 16)
        except BlockingIOError:
            return not only_available
        except OSError:
            return False
        if not data:
            self._flush(stream)
            return False
        self._pass_on(stream, stream.lines(data))
        return True

    def _flush(self, stream: _Stream) -> None:
        """The last line had no end."""
        if stream.rest:
            rest, stream.rest = stream.rest, b""
            self._pass_on(stream, [rest + b"\n"])

    def _pass_on(self, stream: _Stream, lines: list[bytes]) -> None:
        if not lines:
            return
        with self._lock:
            label = self._label
            if stream.name == "stderr":
                self._tail.extend(line.decode(errors="replace").rstrip("\r\n") for line in lines)
            if stream.file is not None:
                with contextlib.suppress(OSError):  # a full disk must not stop training
                    stream.file.write(b"".join(lines))
        if self._show:
            _show(stream.show_fd, b"".join(label + line for line in lines))

    def _close(self) -> None:
        with self._lock:
            for stream in self._streams:
                os.close(stream.pipe)
                if stream.file is not None:
                    stream.file.close()
            self._log_dir = None
        os.close(self._wake_read)
        os.close(self._wake_write)
