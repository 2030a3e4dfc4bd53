"""Who handles which message in one process: a table that is checked when it is made.

Every message that may come by a route has exactly one handler. One without a handler, one with two, and a handler for
a message that cannot come are errors at start, not when the message comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from ff_core.contract.messages import MESSAGES, Message, Route
from ff_core.errors import ProtocolError

Handler = Callable[..., Any]

_PREFIX = "on_"


def offered(part: object) -> dict[str, Handler]:
    """The handlers that a part of a process offers, by message: its methods `on_<message>`."""
    return {
        name.removeprefix(_PREFIX): getattr(part, name)
        for name in dir(type(part))
        if name.startswith(_PREFIX)
    }  # fmt: skip


class Dispatch:
    """The handlers of what comes by `route`.

    tables: handlers by message; no message is in two of them.  elsewhere: messages of this route that somebody else
    takes in, before or beside this table.
    Raises ProtocolError naming the messages if the tables and the definitions do not fit.
    """

    def __init__(self, route: Route, *tables: Mapping[str, Handler], elsewhere: Set[str] = frozenset()) -> None:
        self.route = route
        self._handlers: dict[str, Handler] = {}
        twice: set[str] = set()
        for table in tables:
            twice |= self._handlers.keys() & table.keys()
            self._handlers.update(table)
        wanted = {name for name, definition in MESSAGES.items() if definition.goes(route)} - elsewhere
        for problem, names in (
            ("no handler", wanted - self._handlers.keys()),
            ("two handlers", twice),
            ("a handler that nobody needs", self._handlers.keys() - wanted),
        ):
            if names:
                raise ProtocolError(f"{route.sender} to {route.receiver}: {problem} for {', '.join(sorted(names))}")

    def of(self, message: Message) -> Handler:
        """Who handles `message`. Raises ProtocolError if it may not come here (now)."""
        handler = self._handlers.get(message["t"])
        if handler is None:
            raise ProtocolError(f"{self.route.receiver} got {message['t']!r}, which {self.route.sender} must not send")
        return handler
