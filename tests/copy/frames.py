"""Frames as docs/wire_format.md describes them, written independently of the engine's sources."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, replace

from ff_core.copy import memory
from ff_core.copy.binding import engine

HEADER = struct.Struct("<IHHIIQqQQI")  # without the trailing header checksum
SIZE = HEADER.size + 4
MAGIC = 0x31524646
JOURNAL, BEGIN, CHUNK, BLOB, ACK, REJECT = range(1, 7)
assert SIZE == 56


def crc32c(data: bytes, crc: int = 0) -> int:
    """Of `data`, continuing from `crc`. The engine's; `tests/csrc/test_crc32c.py` compares it with known values."""
    value: int = engine().ff_crc32c(crc, data, len(data))
    return value


@dataclass(frozen=True)
class Frame:
    type: int
    epoch: int
    version: int
    data: bytes = b""
    index: int = 0
    flags: int = 0
    rank: int = 3
    magic: int = MAGIC
    length: int | None = None  # other than the data's
    data_crc: int | None = None
    header_crc: int | None = None

    def but(self, **changes: object) -> Frame:
        return replace(self, **changes)  # type: ignore[arg-type]

    def encode(self) -> bytes:
        length = len(self.data) if self.length is None else self.length
        data_crc = crc32c(self.data) if self.data_crc is None else self.data_crc
        head = HEADER.pack(
            self.magic, self.type, self.flags, self.rank, data_crc, self.epoch, self.version, self.index, length, 0
        )
        return head + struct.pack("<I", crc32c(head) if self.header_crc is None else self.header_crc) + self.data


class Inline:
    """Over a stream socket everything follows its header."""

    name = "tcp"
    copiers = 1

    def encode(self, frame: Frame) -> bytes:
        return frame.encode()

    def peers_file(self) -> int:
        return -1

    def close(self) -> None:
        pass


class Shared:
    """Over shared memory a CHUNK's data lie in the sender's memory file, and their offset follows the header."""

    name = "shm"

    def __init__(self, size: int = 1 << 20, copiers: int = 1) -> None:
        self.copiers = copiers
        self._fd = memory.allocate("ff-test-shared", size)
        self._size, self._at = size, 0

    def encode(self, frame: Frame) -> bytes:
        if frame.type != CHUNK:
            return frame.encode()
        if self._at + len(frame.data) > self._size:
            self._at = 0
        os.pwrite(self._fd, frame.data, self._at)
        offset = struct.pack("<Q", self._at)
        self._at += len(frame.data)
        return frame.encode()[:SIZE] + offset

    def scribble(self, data: bytes) -> None:
        """Over what was encoded last."""
        os.pwrite(self._fd, data, self._at - len(data))

    def peers_file(self) -> int:
        return os.dup(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def conversation(
    payload: bytes, chunk: int, epoch: int, version: int, blob: bytes, journal: bytes = b""
) -> list[Frame]:
    """What a writer sends for one version."""
    frames = [Frame(JOURNAL, epoch, -1, journal)] if journal else []
    frames.append(Frame(BEGIN, epoch, version, struct.pack("<QQ", len(payload), chunk), flags=1))
    for index in range(-(-len(payload) // chunk)):
        frames.append(Frame(CHUNK, epoch, version, payload[index * chunk : (index + 1) * chunk], index))
    return [*frames, Frame(BLOB, epoch, version, blob)]


def receive(sock: socket.socket, file: int = -1) -> Frame | None:
    """The next frame, checksums verified; None when the peer closed. file: the sender's memory, if it is shared."""
    sock.settimeout(60)
    head = b""
    while len(head) < SIZE:
        try:
            part = sock.recv(SIZE - len(head))
        except ConnectionResetError:  # closed with something of ours unread
            part = b""
        if not part:
            assert not head, "closed within a header"
            return None
        head += part
    magic, kind, flags, rank, data_crc, epoch, version, index, length, reserved = HEADER.unpack(head[:-4])
    assert (magic, reserved) == (MAGIC, 0)
    assert struct.unpack("<I", head[-4:])[0] == crc32c(head[:-4])
    data, follows = b"", 8 if file >= 0 and kind == CHUNK else length
    while len(data) < follows:
        part = sock.recv(follows - len(data))
        assert part, "closed within a frame"
        data += part
    if follows != length:
        data = os.pread(file, length, struct.unpack("<Q", data)[0])
    assert crc32c(data) == data_crc
    return Frame(kind, epoch, version, data, index, flags, rank)
