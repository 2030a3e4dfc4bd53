"""Python's garbage collector, kept from looking again and again at everything that torch and a training framework have
imported: a million objects, 0.2 s.

It is put off while many objects that stay are made: tens of thousands of tensors and their descriptions set it off
several times. What a spare has imported, which stays, too, it leaves out for good.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """No automatic collection inside; as before afterwards."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def leave_out() -> None:
    """Collect once; what is alive now is never looked at again. For a spare: nothing of a script is there yet."""
    gc.collect()
    gc.freeze()
