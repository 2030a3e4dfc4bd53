"""What the adapter warns about in a case."""

from __future__ import annotations

import logging


class Said(logging.Handler):
    """The adapter's warnings from now on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("ff_deepspeed").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
