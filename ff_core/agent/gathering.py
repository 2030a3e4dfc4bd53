"""Streams on their way to becoming one connection: gathered at a data port until the last one has come.

Each comes as a socket of its own, authenticated, with a hello that names the group it belongs to (docs/wire_format.md).
The task of the one that came first waits for the others and goes on with all of them; theirs are over when they have
handed their socket over. How many groups may wait, and how long, is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

from ff_core.config.schema import MAX_TCP_STREAMS
from ff_core.contract.auth import GROUP_BYTES
from ff_core.errors import ProtocolError

_MOST_GROUPS = 64


@dataclass(slots=True)
class _Group:
    hello: dict[str, Any]  # what all streams said, but for their numbers
    socks: dict[int, socket.socket] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Gathering:
    """patience_s: how long a group may be incomplete."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._groups: dict[bytes, _Group] = {}

    async def join(self, sock: socket.socket, hello: dict[str, Any]) -> list[socket.socket] | None:
        """All sockets of the connection that `sock` belongs to, stream 0 first; None if another task gets them, with
        `sock` among them.

        A connection of one stream is complete at once. Raises ProtocolError: the hello fits no group, too many wait, or
        some stream has not come in time; the other streams' sockets are closed then, `sock` stays the caller's.
        """
        if "group" not in hello:
            return [sock]
        token, count, number = _checked(hello)
        common = {key: value for key, value in hello.items() if key != "stream"}
        group = self._groups.get(token)
        if group is not None:
            if group.hello != common or number in group.socks:
                raise ProtocolError(f"stream {number} of {count} does not fit the others of its connection")
            group.socks[number] = sock
            if len(group.socks) == count:
                del self._groups[token]
                group.complete.set()
            return None
        if len(self._groups) >= _MOST_GROUPS:
            raise ProtocolError(f"{_MOST_GROUPS} connections are waiting for their streams already")
        group = self._groups[token] = _Group(common, {number: sock})
        try:
            await asyncio.wait_for(group.complete.wait(), self._patience_s)
        except BaseException as error:
            self._groups.pop(token, None)
            for other in group.socks.values():
                if other is not sock:
                    other.close()
            if isinstance(error, asyncio.TimeoutError):
                came = ", ".join(map(str, sorted(group.socks)))
                raise ProtocolError(
                    f"of {count} streams only these came within {self._patience_s:g} s: {came}"
                ) from None
            raise
        return [group.socks[number] for number in range(count)]


def _checked(hello: dict[str, Any]) -> tuple[bytes, int, int]:
    token, count, number = hello["group"], hello.get("streams"), hello.get("stream")
    if not isinstance(token, bytes) or len(token) != GROUP_BYTES:
        raise ProtocolError(f"group is {token!r}, expected {GROUP_BYTES} bytes")
    if type(count) is not int or not 2 <= count <= MAX_TCP_STREAMS:
        raise ProtocolError(f"streams is {count!r}, allowed are 2 to {MAX_TCP_STREAMS}")
    if type(number) is not int or not 0 <= number < count:
        raise ProtocolError(f"stream is {number!r}, allowed are 0 to {count - 1}")
    return token, count, number
