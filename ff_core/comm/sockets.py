"""Which sockets of this process belong to inner gloo groups, and how to cut them.

gloo cannot abort a pending collective; `shutdown(2)` on its *connected* sockets frees every waiter within a
millisecond, here and at the peers. All inner groups of a process share one gloo device per interface, that is one
listening address. A gloo socket is therefore recognised by address alone: accepted ones have our listener's port,
initiated ones lead to the listener of a peer (each rank publishes its own). No other socket of the process can match.

The listener itself is never shut down: gloo ends the process when its listener breaks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import compat

Address = tuple[str, int]


def _descriptors() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket | None]:
    """A duplicate of `fd` as a TCP socket, or None. A duplicate cannot become somebody else's descriptor meanwhile."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            yield None
            return
        duplicate = socket.socket(fileno=os.dup(fd))
    except OSError:  # closed since the listing
        yield None
        return
    try:
        tcp = duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM
        yield duplicate if tcp else None
    finally:
        duplicate.close()


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _listening() -> dict[int, tuple[int, Address]]:
    """Descriptor -> (inode, address). A new listener may get the number of one just closed, but not its inode."""
    found: dict[int, tuple[int, Address]] = {}
    for fd in _descriptors():
        with _borrowed(fd) as sock:
            if sock is not None and _is_listening(sock):
                found[fd] = os.fstat(sock.fileno()).st_ino, sock.getsockname()[:2]
    return found


class GroupSockets:
    """The gloo devices of this process and the addresses that identify its groups' sockets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: list[Any] = []
        self._own: frozenset[Address] = frozenset()
        self._peers: dict[int, frozenset[Address]] = {}

    def devices(self) -> list[Any]:
        """gloo devices, created on first use: one per interface in GLOO_SOCKET_IFNAME, else the host name's."""
        with self._lock:
            if not self._devices:
                names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
                before = {inode for inode, _ in _listening().values()}
                self._devices = [compat.gloo_device(name) for name in names] or [compat.gloo_device(None)]
                self._own = frozenset(address for inode, address in _listening().values() if inode not in before)
            return self._devices

    def own_addresses(self) -> list[Address]:
        """Our listeners' (host, port)."""
        self.devices()
        return sorted(self._own)

    def set_peer(self, rank: int, addresses: Iterable[Address]) -> None:
        """`rank` listens at `addresses`; replaces what was known of it (a newcomer listens elsewhere)."""
        with self._lock:
            self._peers = {**self._peers, rank: frozenset(addresses)}

    def _matches(self, sock: socket.socket, peers: frozenset[Address]) -> bool:
        try:
            return sock.getsockname()[:2] in self._own or sock.getpeername()[:2] in peers
        except OSError:  # not connected
            return False

    def _all_peers(self) -> frozenset[Address]:
        return frozenset(address for addresses in self._peers.values() for address in addresses)

    def connected(self) -> list[int]:
        """Descriptors of the inner groups' connected sockets."""
        peers, found = self._all_peers(), []
        for fd in _descriptors():
            with _borrowed(fd) as sock:
                if sock is not None and not _is_listening(sock) and self._matches(sock, peers):
                    found.append(fd)
        return found

    def shutdown(self) -> int:
        """Cuts every connected group socket, in both directions; returns how many. Any thread, any number of times.

        What has arrived and was not read yet is dropped: gloo reads the connection's end next, wherever it is. Nothing
        can come after it; and one system call drops all, so that gloo never reads on behind a gap.
        """
        count = 0
        with self._lock:
            peers = self._all_peers()
            for fd in _descriptors():
                with _borrowed(fd) as sock:
                    if sock is None or _is_listening(sock) or not self._matches(sock, peers):
                        continue
                    with contextlib.suppress(OSError):  # the peer was faster
                        sock.shutdown(socket.SHUT_RDWR)
                        count += 1
                    with contextlib.suppress(OSError):  # gloo was faster, or the connection was reset
                        (unread,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
                        sock.recv(unread, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        return count

    def forget_in_child(self) -> None:
        """In a forked child: let go of all group sockets, else the peers of a dead parent never see it die.

        The descriptor numbers stay taken (by /dev/null): gloo objects that the child inherited may close them later,
        and must not hit a file that the child opened meanwhile. Takes no lock: its owner may not exist in the child.
        """
        if not self._own and not self._peers:
            return
        peers = self._all_peers()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            for fd in _descriptors():
                with _borrowed(fd) as sock:
                    ours = sock is not None and (
                        sock.getsockname()[:2] in self._own if _is_listening(sock) else self._matches(sock, peers)
                    )
                if ours:
                    os.dup2(null, fd, inheritable=False)
        finally:
            os.close(null)
