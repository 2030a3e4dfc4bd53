"""The torch store of a job, hosted by the launcher of node 0: it outlives every rank, rank 0 included."""

from __future__ import annotations

import datetime
import errno
import socket
from typing import TYPE_CHECKING

from ff_core.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_CONTROLLER_KEY = "ff/controller"


def is_loopback(address: str) -> bool:
    """Whether `address` (host name or number) means this machine only. Raises ConfigError if it cannot be resolved."""
    return all(str(info[4][0]).startswith("127.") or info[4][0] == "::1" for info in _resolve(address, 0))


def host_store(address: str, port: int) -> tuple[TCPStore, int]:
    """Serve a store at `address`:`port` (0: any free port); returns it and its port. It lives as long as the object.

    On a loopback address it listens there only. Raises ConfigError if the port is taken or the address not to be had.
    """
    from torch.distributed import TCPStore

    family, _, _, _, place = _resolve(address, port)[0]
    # A node's public address may not be an address of its interfaces (containers, NAT): then all of them.
    places = [place] if is_loopback(address) else [place, ("", port)]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for attempt in places:
        try:
            listener.bind(attempt)
            break
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and attempt is not places[-1]:
                continue
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
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

    try:
        store = TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=timeout_s)
        )
        text = store.get(_CONTROLLER_KEY).decode()
    except RuntimeError as error:
        raise ConfigError(
            f"no answer from node 0 at {address}:{port} within {timeout_s:.0f} s: is fftrain running there? ({error})"
        ) from None
    host, _, number = text.rpartition(":")
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
        raise ConfigError(f"address {address!r}: {error.strerror}") from None
    return sorted(found, key=lambda info: info[0] != socket.AF_INET)
