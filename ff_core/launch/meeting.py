"""Where a job's nodes meet. The machine whose own address the endpoint names has torch's store and the controller. The
others look for it there until it answers."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ff_core.contract.address import endpoint
from ff_core.errors import ConfigError
from ff_core.launch import torch_store
from ff_core.launch.rivals import controller_at

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_AGAIN_S = 1.0
_SAY_AGAIN_S = 30.0


class Meeting(NamedTuple):
    """store: torch's, which this process serves: its launcher is to have the controller. None: another one has it.
    host, port: of the store here, or of the controller there."""

    store: TCPStore | None
    host: str
    port: int


def meet(address: str, port: int, timeout_s: float, may_host: bool) -> Meeting:
    """Find out who has the controller, and where it is.

    Names that are not known yet and machines that do not answer are asked again for `timeout_s`: nodes of a cluster
    start in any order. may_host: whether the controller may be here. Of several launchers on the endpoint's machine
    the first has it. Raises ConfigError.
    """
    place = endpoint(address, port)
    deadline, say_at = time.monotonic() + timeout_s, 0.0
    while True:
        problem = ""
        try:
            if may_host and is_own(address):
                store, bound = torch_store.host_store(address, port)
                return Meeting(store, address, bound)
        except torch_store.PortTakenError as taken:
            found = controller_at(address, port)
            if found is None:
                raise taken
            return Meeting(None, *found)
        except torch_store.UnknownAddressError as error:
            problem = str(error)
        found = None if problem else controller_at(address, port)
        if found is not None:
            print(f"fftrain: the controller is at {endpoint(*found)}", file=sys.stderr)
            return Meeting(None, *found)
        now = time.monotonic()
        if now >= deadline:
            raise ConfigError(
                f"no controller at {place} within {timeout_s:g} s{problem and f' ({problem})'}. It runs on the machine "
                "whose own address that is: is fftrain run started there, with the same command, and can this machine "
                "reach it? Where the address is no machine's own (behind NAT or a service), give the node that is to "
                "have it --rdzv-conf is_host=true"
            )
        if now >= say_at:
            say_at = now + _SAY_AGAIN_S
            print(
                f"fftrain: no controller at {place} yet; asking again for {deadline - now:.0f} s"
                f"{problem and f' ({problem})'}",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_AGAIN_S)


def find_again(
    address: str, port: int, timeout_s: float, stopped: Callable[[], bool]
) -> tuple[str, int] | None:  # fmt: skip
    """For a node that was lost, or has lost the controller: where the controller is (host, port); None if the job is
    over. That is so if the machine at the endpoint answers and nobody listens there. One that does not answer is asked
    again for `timeout_s`, or until `stopped()`."""
    place = endpoint(address, port)
    print(
        f"fftrain: the job goes on without this node, or this node cannot hear it; asking {place} for {timeout_s:g} s "
        "to stand by",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not stopped():
        try:
            socket.create_connection((address, port), _AGAIN_S).close()
        except ConnectionRefusedError:
            return None
        except OSError:
            time.sleep(_AGAIN_S)
            continue
        found = controller_at(address, port)
        if found is not None:
            return found
        time.sleep(_AGAIN_S)
    return None


def is_own(address: str) -> bool:
    """Whether `address` is one of this machine's. Raises UnknownAddressError, and ConfigError for a name that here
    means an address by which nobody else reaches this machine."""
    interface = torch_store.interface_of(address)
    if interface in ("0.0.0.0", "::"):
        return False
    if ipaddress.ip_address(interface.partition("%")[0]).is_loopback and not _means_loopback(address):
        raise ConfigError(
            f"--rdzv-endpoint {address}: on this machine the name means {interface}, where no other node can come; "
            f"give the address by which the others reach {socket.gethostname()}, or its name in /etc/hosts that address"
        )
    return True


def _means_loopback(address: str) -> bool:
    if address.startswith("localhost"):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
