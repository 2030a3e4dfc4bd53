"""Python's garbage collector, put off while many objects that stay are made.

Tens of thousands of tensors and their descriptions set it off several times, and each time it looks at everything that
torch and a training framework have imported.
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
