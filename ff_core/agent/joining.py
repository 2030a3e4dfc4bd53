"""An agent between two controllers: it looks for the next one, and what it has to say meanwhile waits.

The rules are in docs/protocol.md, section 8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from ff_core.agent.agent import Agent
from ff_core.contract import rpc
from ff_core.contract.address import endpoint
from ff_core.contract.messages import Message
from ff_core.contract.proof import is_proven_dead
from ff_core.errors import ProtocolError

#: A launcher that is being killed may take a connection and not answer. So long it is asked again.
_ASK_S = 5.0
_CONNECT_S = 2.0
_AGAIN_S = 0.02
_LOOK_S = 0.1

#: So long it goes on behind launchers that do not answer.
_SEARCH_S = 15.0
_ALONE = (
    "of two nodes one is no majority. With a third one, such as one with --standby, another controller would take over"
)

Line = tuple[grpc.aio.Channel, rpc.Stream]


class Nobody(Enum):
    """No answer: DEAD is proof that there will be none, SILENT is not."""

    DEAD = 1
    SILENT = 2


_Joining = tuple[grpc.aio.Channel, rpc.Stream, Message] | Nobody | str


class Uplink:
    """What the agent says goes to the controller of the day; while there is none, it waits for the next one."""

    def __init__(self, stream: rpc.Stream) -> None:
        self._stream: rpc.Stream | None = stream
        self._kept: list[tuple[str, dict[str, Any]]] = []

    def send(self, name: str, **fields: Any) -> None:
        if self._stream is None:
            self._kept.append((name, fields))
        else:
            self._stream.send(name, **fields)

    def hold(self) -> None:
        """The controller is gone, and the next one is told how things are from now on."""
        self._stream, self._kept = None, []

    def goes_to(self, stream: rpc.Stream) -> None:
        """What has been kept goes there, too."""
        self._stream, kept = stream, self._kept
        self._kept = []
        for name, fields in kept:
            self.send(name, **fields)


async def join_another(agent: Agent, uplink: Uplink, secret: bytes, hello: dict[str, Any]) -> Line | None:
    """The controller is gone. Returns the line to the next one; None: there is none, for this node at least."""
    allegiance, say = agent.allegiance, agent.state.say
    if not allegiance.may_join():
        if allegiance.places() and not agent.state.stopping and not allegiance.can_elect():
            say(f"nobody takes over: the controller is silent, and may live; {_ALONE}")
        return None
    uplink.hold()
    alone = f"it does not answer, and may live; {_ALONE}"
    deadline, passed = time.monotonic() + _SEARCH_S, list[int]()

    def says(term: int) -> dict[str, Any]:
        return {**hello, "joins": allegiance.report(passed, term)}

    for node, host, port in allegiance.places():
        found: _Joining = Nobody.SILENT
        if not allegiance.is_silent(endpoint(host, port)) and time.monotonic() < deadline:
            found = await _join(host, port, secret, says)
        if found is Nobody.DEAD:
            say(f"the launcher of node {node} is dead")
        elif found is Nobody.SILENT and allegiance.can_elect():
            passed.append(node)
            say(f"node {node} does not answer")
        elif isinstance(found, Nobody | str):
            say(f"node {node} does not take over: {alone if isinstance(found, Nobody) else found}")
            return None
        else:
            channel, stream, welcome = found
            allegiance.obeys(endpoint(host, port), hello.get("deputy"))
            agent.workers.store = welcome.get("store")
            uplink.goes_to(stream)
            if allegiance.signum:
                uplink.send("drain", signum=allegiance.signum)
            return channel, stream
    return None


async def _join(host: str, port: int, secret: bytes, says: Callable[[int], dict[str, Any]]) -> _Joining:
    """Ask one launcher: the line to it and its welcome, or why it is no controller. says(term): our hello, with that
    term at least."""
    deadline, hello = time.monotonic() + _ASK_S, says(0)
    while True:
        asking = asyncio.ensure_future(rpc.connect(endpoint(host, port), secret, hello, _CONNECT_S))
        try:
            while not asking.done():  # gRPC itself does not say that nobody listens
                if await is_proven_dead(host, port):
                    return Nobody.DEAD
                await asyncio.wait((asking,), timeout=_LOOK_S)
            return asking.result()
        except rpc.RefusedError as error:
            if not error.term:
                return str(error)
            hello = says(error.term)
        except (ProtocolError, OSError, grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError):
            if time.monotonic() > deadline:
                return Nobody.SILENT
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(_AGAIN_S)
