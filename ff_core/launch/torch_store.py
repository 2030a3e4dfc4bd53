"""The torch store of a job, hosted by the launcher of node 0: it outlives every rank, rank 0 included."""

from __future__ import annotations

import datetime
import errno
import queue
import socket
import threading
from typing import TYPE_CHECKING

from ff_core.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_CONTROLLER_KEY = "ff/controller"


class PortTakenError(ConfigError):
    """Somebody listens there already."""


class UnknownAddressError(ConfigError):
    """The name means no address, at least not yet."""


def interface_of(address: str) -> str:
    """What to listen at to be reached at `address`: itself, or all interfaces where it is none of this machine's own.

    (In containers and behind NAT a machine's public address often is not one of its interfaces'.) Raises ConfigError.
    """
    family, _, _, _, place = _resolve(address, 0)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return "::" if family == socket.AF_INET6 else "0.0.0.0"
            raise ConfigError(f"cannot listen at {address}: {error.strerror}") from None
    return str(place[0])


def host_store(address: str, port: int) -> tuple[TCPStore, int]:
    """Serve a store at `address`:`port` (0: any free port); returns it and its port. It lives as long as the object.

    It listens at `interface_of(address)` only. Raises ConfigError if the port is taken or the address not to be had.
    """
    from torch.distributed import TCPStore

    family, _, _, _, place = _resolve(interface_of(address), port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"port {port} of {address} is taken; allowed: a free one (--master-port), or none for any free port"
            ) from None
        raise ConfigError(f"cannot listen at {address}:{port}: {error.strerror}") from None
    listener.listen(1024)
    port = listener.getsockname()[1]
    store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def publish_controller(store: TCPStore, controller: tuple[str, int]) -> None:
    """Tell the launchers of the other nodes where the controller is."""
    store.set(_CONTROLLER_KEY, f"{controller[0]}:{controller[1]}")


def find_controller(address: str, port: int, timeout_s: float) -> tuple[str, int]:
    """The controller's (host, port), from the store at `address`:`port`. Raises ConfigError if nobody is there."""
    from torch.distributed import TCPStore

    answer: queue.SimpleQueue[str | RuntimeError] = queue.SimpleQueue()

    def ask() -> None:
        limit = datetime.timedelta(seconds=timeout_s)
        try:
            store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
            answer.put(store.get(_CONTROLLER_KEY).decode())
        except RuntimeError as error:
            answer.put(error)

    # In a thread: torch waits without a limit for a program that takes the connection and says nothing.
    threading.Thread(target=ask, name="ff-find", daemon=True).start()
    try:
        found = answer.get(timeout=timeout_s + 1.0)
    except queue.Empty:
        found = RuntimeError("something listens there, and is no store of torch's")
    if isinstance(found, RuntimeError):
        raise ConfigError(
            f"no answer from node 0 at {address}:{port} within {timeout_s:.0f} s: is fftrain running there? ({found})"
        )
    host, _, number = found.rpartition(":")
    return host, int(number)


def local_address(towards: tuple[str, int]) -> str:
    """The address of the interface by which this machine reaches `towards`."""
    family, _, _, _, place = _resolve(*towards)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def _resolve(address: str, port: int) -> list[tuple[socket.AddressFamily, int, int, str, tuple]]:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnknownAddressError(f"address {address!r}: {error.strerror}") from None
    return sorted(found, key=lambda info: info[0] != socket.AF_INET)
