"""Ends of a script that pass Python's own end by: os._exit(0), and replacing the process by another program.

Many scripts end so, because exit hooks or a communicator hang at exit. The other ranks must learn that this one has
ended well, or its end would be taken for a death.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ff_core.worker import script


@contextmanager
def noticed(shutdown: Callable[[], None]) -> Iterator[None]:
    """Within: shutdown() is called before os._exit(0) and before os.execv or os.execve, which all others of that family
    end in. Only from the main thread of this very process: a forked child's end is its own affair, and another
    thread's is no end of the script. What shutdown() raises becomes the end of the process, with exit code 1.
    """
    pid, main = os.getpid(), threading.main_thread()
    real_exit, real_execs = os._exit, {name: getattr(os, name) for name in ("execv", "execve")}

    def restore() -> None:
        os._exit = real_exit
        for name, real in real_execs.items():
            setattr(os, name, real)

    def end() -> None:
        """The script ends here; once."""
        restore()
        try:
            shutdown()
        except BaseException as error:
            code = script.report_exception(error)
            script.write_error_file(error)
            real_exit(code or 1)

    def ours() -> bool:
        return os.getpid() == pid and threading.current_thread() is main

    def leave(status: int) -> NoReturn:
        if status == 0 and ours():
            end()
        real_exit(status)

    def replacing(name: str) -> Callable[..., Any]:
        def execute(path: Any, *arguments: Any) -> Any:
            # One that is not there raises, and the script goes on: execvp tries a path after the other.
            if ours() and os.access(path, os.X_OK):
                print(
                    f"fftrain: this rank's process becomes {os.fsdecode(path)}: from here on it is not protected",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                end()
            return real_execs[name](path, *arguments)

        return execute

    os._exit = leave
    for name in real_execs:
        setattr(os, name, replacing(name))
    try:
        yield
    finally:
        restore()
