"""Where the threads of a rank's process are: it writes that down by itself when its agent sends it a signal.

The handler is faulthandler's. It runs in C and needs no lock of Python's, so it answers too where a thread keeps the
interpreter's lock for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from collections.abc import Mapping

VARIABLE = "FF_STACKS_FD"  # a descriptor that the process was born with: the agent reads what is written there
#: Schedulers, launchers and scripts use named ones; the C library keeps the first of these, tools take low ones.
SIGNAL = signal.SIGRTMAX - 7


def answer() -> None:
    """In a worker: from now on SIGNAL writes all stacks. Nothing if no agent asks for them."""
    fd = int(os.environ.get(VARIABLE, -1))
    with contextlib.suppress(OSError):  # started by hand in an environment that was copied
        os.set_inheritable(fd, False)
        faulthandler.register(SIGNAL, file=fd, all_threads=True)


def keep_for(environ: Mapping[str, str]) -> None:
    """The process is about to execute another program, which is to answer as well."""
    if VARIABLE in environ:
        os.set_inheritable(int(environ[VARIABLE]), True)
