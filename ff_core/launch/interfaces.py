"""The network interface by which the nodes of a job reach each other."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915
_INET6 = Path("/proc/net/if_inet6")


def interface_with(address: str) -> str:
    """The name of this machine's interface that has `address` (IPv4 or IPv6); empty if none has it."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if wanted.version == 6:
        lines = _INET6.read_text().splitlines() if _INET6.exists() else []
        return next((line.split()[-1] for line in lines if int(line.split()[0], 16) == int(wanted)), "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(found[20:24]) == str(wanted):
                return name
    return ""


def give_gloo_an_interface(address: str) -> None:
    """Have gloo's groups listen where this node is reached, at `address`, unless GLOO_SOCKET_IFNAME says where.

    By itself gloo takes the interface that the host's own name means. In many clusters /etc/hosts has that name for the
    loopback, and then no other node comes through.
    """
    try:
        loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return  # a name, not one of this machine's addresses
    if loopback or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = interface_with(address)
    if name:
        os.environ["GLOO_SOCKET_IFNAME"] = name
