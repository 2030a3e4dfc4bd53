"""Messages from the agent that the training thread waits for. Filled by the link's thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ff_core.contract.messages import Message


class Inbox:
    """Keeps the newest message of each name, with its descriptors."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[Message, list[int]]] = {}
        self._changed = threading.Condition()

    def put(self, message: Message, fds: list[int]) -> None:
        with self._changed:
            old = self._messages.pop(message["t"], None)
            if old is not None:
                for fd in old[1]:
                    os.close(fd)
            self._messages[message["t"]] = (message, fds)
            self._changed.notify_all()

    def poke(self) -> None:
        """Something else changed (a halt): let waiters look at their condition again."""
        with self._changed:
            self._changed.notify_all()

    def take(
        self, name: str, accept: Callable[[Message], bool], check: Callable[[], None], timeout_s: float | None = None
    ) -> tuple[Message, list[int]]:
        """Wait for a message called `name` that `accept` likes; descriptors become the caller's.

        `check` is called before every wait and may raise (an interrupt). TimeoutError after timeout_s.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                check()
                found = self._messages.get(name)
                if found is not None and accept(found[0]):
                    return self._messages.pop(name)
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no {name!r} from the agent within {timeout_s:g} s")
                self._changed.wait(min(left, 1.0))
