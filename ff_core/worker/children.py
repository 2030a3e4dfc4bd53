"""Processes that a library starts while it is imported: a compiler, or a program that tells what the machine is.

Many are given a copy of the environment. That is no look at the rank: the process has what it would have inherited.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def started_without(kind: type) -> Iterator[None]:
    """Within: a process that subprocess starts has no variable whose value is a `kind`; nobody looks at that one."""
    begin = subprocess.Popen.__init__

    @functools.wraps(begin)
    def started(self: Any, *arguments: Any, **options: Any) -> None:
        if options.get("env") is not None:
            options["env"] = {name: value for name, value in options["env"].items() if type(value) is not kind}
        begin(self, *arguments, **options)

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = begin  # type: ignore[method-assign]
