"""The network interface by which the nodes of a job reach each other."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil


def interface_with(address: str) -> str:
    """The name of this machine's interface that has `address` (IPv4 or IPv6); empty if none has it."""
    wanted = _plain(address)
    for name, held in psutil.net_if_addrs().items():
        if any(_plain(one.address) == wanted for one in held if one.family in (socket.AF_INET, socket.AF_INET6)):
            return str(name)
    return ""


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Without the scope that an IPv6 address may end with. Raises ValueError for a name."""
    return ipaddress.ip_address(address.partition("%")[0])


def give_gloo_an_interface(address: str) -> None:
    """Have gloo's groups listen where this node is reached, at `address`, unless GLOO_SOCKET_IFNAME says where.

    By itself gloo takes the interface that the host's own name means. In many clusters /etc/hosts has that name for the
    loopback, and then no other node comes through.
    """
    try:
        loopback = _plain(address).is_loopback
    except ValueError:
        return  # a name, not one of this machine's addresses
    if loopback or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = interface_with(address)
    if name:
        os.environ["GLOO_SOCKET_IFNAME"] = name
