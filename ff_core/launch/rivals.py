"""Two launchers that both believe to be node 0: found out on either machine, and both end with the reason."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ff_core.contract import rpc
from ff_core.contract.address import endpoint
from ff_core.contract.job import JobSpec
from ff_core.errors import ConfigError, ProtocolError
from ff_core.launch import torch_store

if TYPE_CHECKING:
    from ff_core.controller.server import ControllerServer

_CONNECT_S = 1.0
_ANSWER_S = 5.0
_LOOK_AGAIN_S = 3.0


def refuse_second_node_0(address: str, port: int, secret: bytes) -> None:
    """Raise ConfigError if a launcher serves the job's store at `address`:`port` already; that one is told."""
    found = controller_at(address, port)
    if found is not None:
        raise ConfigError(_tell(found, secret, address, port))


def watch_for_node_0(
    address: str, port: int, secret: bytes, own: tuple[str, int], server: ControllerServer
) -> None:  # fmt: skip
    """In a thread, until all nodes have come: end the job of `server` if `address`:`port` turns out to be another
    launcher's. own: where our own controller is published."""

    def look() -> None:
        while server.waits_for_nodes():
            found = controller_at(address, port)
            if found is not None and found != own:
                server.fail(_tell(found, secret, address, port))
                return
            time.sleep(_LOOK_AGAIN_S)

    threading.Thread(target=look, name="ff-rivals", daemon=True).start()


def tell_who_returns(
    job: JobSpec, line: dict[str, str], endpoint: tuple[str, int], secret: bytes, silent: Sequence[tuple[str, int]] = ()
) -> None:  # fmt: skip
    """A launcher that has come to where `job` began is told that the job goes on, and where (`endpoint`). It would
    begin the job a second time. line: what it must have been started with, or it is another job's. silent: where
    other launchers are told, too."""
    began = job.master_addr, job.master_port
    found = controller_at(*began) if began != endpoint else None
    for place in {*silent, *([] if found is None else [found])}:
        _announce(place, secret, _hello() | {"launch": line, "goes_on": [*endpoint]})


def controller_at(address: str, port: int) -> tuple[str, int] | None:
    """Where the controller is whose launcher serves `address`:`port`; None if there is none."""
    try:
        socket.create_connection((address, port), _CONNECT_S).close()
    except OSError:
        return None  # nobody listens there: as it should be
    try:
        return torch_store.find_controller(address, port, _ANSWER_S)
    except ConfigError:
        return None  # something else has the port


def _tell(controller: tuple[str, int], secret: bytes, address: str, port: int) -> str:
    """Have the other launcher end too, if its job has not begun. Returns what to say here."""
    _announce(controller, secret, _hello() | {"rival": True})
    return f"--node-rank 0: another launcher is node 0 already and serves {address}:{port}; give each node its own rank"


def _hello() -> dict[str, Any]:
    hello = {"node": 0, "host_id": "", "hostname": socket.gethostname(), "data_host": "", "data_port": 0}
    return hello | {"free_bytes": 0, "pid": os.getpid()}


def _announce(controller: tuple[str, int], secret: bytes, hello: dict[str, Any]) -> None:
    """Say so to another launcher's controller."""
    place = endpoint(*controller)

    async def say() -> None:
        channel, _, _ = await rpc.connect(place, secret, hello, _ANSWER_S)
        await channel.close()

    try:
        asyncio.run(asyncio.wait_for(say(), 2 * _ANSWER_S))
    except (ProtocolError, OSError, asyncio.TimeoutError):
        pass  # refused, as it should be; or it has just gone
