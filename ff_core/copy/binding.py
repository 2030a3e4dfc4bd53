"""The engine's shared library: where it is, its C structures and functions, and its error codes as exceptions.

`engine()` loads it on first use. $FF_ENGINE_LIBRARY names another build of it (with a sanitizer, say).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TypeAlias

from ff_core.csrc.build import SOURCE_DIR, interface
from ff_core.errors import CorruptSlotError, EngineError, ProtocolError

OK, EINVAL, ETIMEOUT, ECANCELLED, ECORRUPT, EIO = range(0, -6, -1)
EPROTO, ENOSPACE, EHALTED, EINTERNAL, EDEVICE, ETRANSPORT = range(-6, -12, -1)
CODE_NAMES = {
    OK: "ok",
    EINVAL: "invalid argument",
    ETIMEOUT: "timeout",
    ECANCELLED: "cancelled",
    ECORRUPT: "corrupt",
    EIO: "i/o",
    EPROTO: "protocol",
    ENOSPACE: "no space",
    EHALTED: "halted",
    EINTERNAL: "internal",
    EDEVICE: "device",
    ETRANSPORT: "transport",
}


class CopyCancelled(EngineError):
    """What was asked for was abandoned by a cancel, most likely because a failover began."""


class TransportError(EngineError):
    """The transport asked for cannot be had, here or with this peer; another one can."""


class CLayout(ctypes.Structure):
    _fields_ = [
        ("rank", c_uint32),
        ("slots", c_uint32),
        ("sent_bytes", c_uint64),
        ("local_bytes", c_uint64),
        ("blob_capacity", c_uint64),
        ("journal_capacity", c_uint64),
        ("chunk_bytes", c_uint64),
    ]


class CSlotInfo(ctypes.Structure):
    _fields_ = [
        ("state", c_uint32),
        ("epoch", c_uint64),
        ("version", c_int64),
        ("payload_bytes", c_uint64),
        ("blob_bytes", c_uint64),
        ("full", c_uint32),
        ("checksummed", c_uint32),
    ]


class CSegment(ctypes.Structure):
    _fields_ = [
        ("ptr", c_void_p),
        ("bytes", c_uint64),
        ("offset", c_uint64),
        ("device", c_int32),
        ("reserved", c_int32),
    ]


class CWriterOptions(ctypes.Structure):
    _fields_ = [
        ("arena", c_void_p),
        ("arena_bytes", c_uint64),
        ("page", c_void_p),
        ("notify_fd", c_int),
        ("bandwidth_bytes_per_s", c_uint64),
        ("checksum", c_int32),
        ("stall_timeout_ms", c_int32),
    ]


class CWriterStats(ctypes.Structure):
    _fields_ = [
        (name, c_uint64)
        for name in (
            "versions",
            "bytes_copied",
            "bytes_sent",
            "copy_ns",
            "send_ns",
            "ack_wait_ns",
            "cpu_ns",
            "holders",
            "holders_lost",
            "yielded_ns",
            "paced_ns",
            "deadlines",
            "deadlines_missed",
            "zero_copy_bytes",
            "streams",
        )
    ]


class CReceiverStatus(ctypes.Structure):
    _fields_ = [
        ("connection_id", c_uint64),
        ("last_stamp", c_uint64),
        ("bytes", c_uint64),
        ("journals", c_uint64),
        ("open", c_int32),
        ("error", c_int32),
        ("message", c_char * 192),
    ]


class CConnection(ctypes.Structure):
    _fields_ = [
        ("fds", POINTER(c_int)),
        ("count", c_size_t),
        ("transport", ctypes.c_char_p),
        ("peers_file", c_int),
        ("copiers", c_uint32),
        ("fewer", c_uint32),
    ]


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ff_last_error": (ctypes.c_char_p, []),
    "ff_build_info": (ctypes.c_char_p, []),
    "ff_interface": (ctypes.c_char_p, []),
    "ff_crc32c": (c_uint32, [c_uint32, c_void_p, c_size_t]),
    "ff_torch_generator_skip": (c_int, [c_void_p, c_uint64, c_uint64]),
    "ff_memory_huge": (c_int, [c_int, c_uint64, POINTER(c_uint64)]),
    "ff_memory_map": (c_int, [c_int, c_uint64, POINTER(c_void_p)]),
    "ff_memory_unmap": (c_int, [c_void_p, c_uint64]),
    "ff_arena_bytes": (c_uint64, [POINTER(CLayout)]),
    "ff_arena_format": (c_int, [c_void_p, c_uint64, POINTER(CLayout)]),
    "ff_arena_check": (c_int, [c_void_p, c_uint64, POINTER(CLayout)]),
    "ff_slot_info_get": (c_int, [c_void_p, c_uint32, POINTER(CSlotInfo)]),
    "ff_slot_restamp": (c_int, [c_void_p, c_uint32, c_uint64]),
    "ff_slot_empty": (c_int, [c_void_p, c_uint32]),
    "ff_slot_verify": (c_int, [c_void_p, c_uint32]),
    "ff_slot_copy": (c_int, [c_void_p, c_uint32, c_void_p, c_uint32]),
    "ff_slot_blob": (c_int, [c_void_p, c_uint32, POINTER(c_void_p), POINTER(c_uint64)]),
    "ff_slot_corrupt": (c_int, [c_void_p, c_uint32, c_uint64]),
    "ff_slot_restore": (c_int, [c_void_p, c_uint32, POINTER(CSegment), c_size_t]),
    "ff_journal_set": (c_int, [c_void_p, c_void_p, c_uint64]),
    "ff_journal_get": (c_int, [c_void_p, POINTER(c_void_p), POINTER(c_uint64)]),
    "ff_page_load": (c_uint64, [c_void_p]),
    "ff_page_store": (None, [c_void_p, c_uint64]),
    "ff_page_notify": (None, [c_void_p]),
    "ff_page_wait_w": (c_int, [c_void_p, c_uint64, c_uint64, c_int64]),
    "ff_life_init": (c_int, [c_void_p]),
    "ff_life_hold": (c_int, [c_void_p]),
    "ff_life_release": (c_int, [c_void_p]),
    "ff_life_watch_open": (c_int, [c_void_p, c_int, POINTER(c_void_p)]),
    "ff_life_watch_close": (c_int, [c_void_p]),
    "ff_writer_open": (c_int, [POINTER(CWriterOptions), POINTER(c_void_p)]),
    "ff_writer_prepare": (c_int, [c_void_p, c_int32]),
    "ff_writer_set_segments": (c_int, [c_void_p, POINTER(CSegment), c_size_t]),
    "ff_writer_add_holder": (c_int, [c_void_p, POINTER(CConnection), c_int64]),
    "ff_writer_clear_holders": (c_int, [c_void_p]),
    "ff_writer_begin": (c_int, [c_void_p, c_uint32, c_uint64, c_int64, c_void_p]),
    "ff_writer_device_wait": (c_int, [c_void_p, c_int64, c_void_p, c_int64]),
    "ff_writer_step_ended": (c_int, [c_void_p, c_int64, POINTER(c_int32)]),
    "ff_writer_resend": (c_int, [c_void_p, c_uint32, c_uint64, c_int64]),
    "ff_writer_set_window": (c_int, [c_void_p, c_uint64]),
    "ff_writer_set_downloads": (c_int, [c_void_p, c_uint64, c_uint64]),
    "ff_writer_go": (c_int, [c_void_p]),
    "ff_writer_collective_begin": (c_int, [c_void_p, c_void_p, POINTER(c_uint64)]),
    "ff_writer_collective_end": (c_int, [c_void_p, c_uint64, c_void_p]),
    "ff_writer_collective_forget": (c_int, [c_void_p, c_uint64]),
    "ff_writer_seal": (c_int, [c_void_p, c_int64, c_void_p, c_uint64]),
    "ff_writer_wait_copied": (c_int, [c_void_p, c_int64, c_int64]),
    "ff_writer_check": (c_int, [c_void_p]),
    "ff_writer_cancel": (c_int, [c_void_p]),
    "ff_writer_stats_get": (c_int, [c_void_p, POINTER(CWriterStats)]),
    "ff_writer_close": (c_int, [c_void_p]),
    "ff_receiver_open": (c_int, [c_int, POINTER(c_void_p)]),
    "ff_receiver_attach": (
        c_int,
        [c_void_p, POINTER(CConnection), c_void_p, c_uint64, c_uint64, POINTER(c_uint64)],
    ),
    "ff_receiver_detach": (c_int, [c_void_p, c_void_p]),
    "ff_receiver_retire_before": (c_int, [c_void_p, c_uint64]),
    "ff_receiver_poll": (c_int, [c_void_p, POINTER(CReceiverStatus), c_size_t, POINTER(c_size_t)]),
    "ff_receiver_close": (c_int, [c_void_p]),
    "ff_send_slot": (c_int, [POINTER(CConnection), c_void_p, c_uint64, c_uint32, c_uint64, c_int64]),
    "ff_ucx_check": (c_int, []),
    "ff_rdma_ports": (ctypes.c_char_p, [ctypes.c_char_p]),
}


_HEADER = SOURCE_DIR / "ff_engine.h"

Streams: TypeAlias = int | Sequence[int]  # the descriptor of a connection, or of each of its streams, in order


def connection(
    fds: Streams, transport: str, peers_file: int = -1, copiers: int = 0, *, fewer: bool = False
) -> CConnection:
    """A connection as the engine takes it, see ff_engine.h. It owns the descriptors once it is given to a function."""
    several = (fds,) if isinstance(fds, int) else tuple(fds)
    return CConnection((c_int * len(several))(*several), len(several), transport.encode(), peers_file, copiers, fewer)


def library_path() -> Path:
    """The library that engine() loads."""
    return Path(os.environ.get("FF_ENGINE_LIBRARY") or Path(__file__).with_name("_ff_engine.so"))


@cache
def engine() -> ctypes.CDLL:
    """The loaded library with typed functions. EngineError, saying what to run, if it is missing or does not load."""
    path = library_path()
    if not path.exists():
        raise EngineError(
            f"the copy engine is not built ({path} does not exist): "
            "run `python -m ff_core.csrc.build` or `pip install .`"
        )
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        # Sources that were updated without the library. An installed package has no sources, and one library.
        if _HEADER.exists() and library.ff_interface().decode() != interface():
            raise OSError("it was built from other sources than these")
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"the copy engine at {path} cannot be used ({error}): run `python -m ff_core.csrc.build`"
        ) from error
    return library


def error_of(code: int, message: str) -> Exception:
    """The exception that stands for an FF_E* code."""
    if code == ETIMEOUT:
        return TimeoutError(message)
    if code == ECORRUPT:
        return CorruptSlotError(message)
    if code == EPROTO:
        return ProtocolError(message)
    if code == ETRANSPORT:
        return TransportError(message)
    if code == ECANCELLED:
        return CopyCancelled(message)
    return EngineError(f"{message} [{CODE_NAMES.get(code, code)}]")


def last_error() -> str:
    """The calling thread's latest message."""
    text: bytes = engine().ff_last_error()
    return text.decode("utf-8", "replace")


def check(code: int) -> None:
    """Raise what a negative code stands for."""
    if code < 0:
        raise error_of(code, last_error())


def build_info() -> str:
    """JSON: compiler, CRC32C implementation, CUDA, transports."""
    text: bytes = engine().ff_build_info()
    return text.decode()


def crc32c_at(address: int, size: int, crc: int = 0) -> int:
    """CRC32C of `size` bytes of this process's memory from `address` on, continuing from `crc`. Other threads run."""
    value: int = engine().ff_crc32c(crc, address, size)
    return value


def generator_skip(address: int, size: int, count: int) -> None:
    """Move a generator of torch's on by `count` numbers of 32 bits. Other threads run meanwhile.

    address, size: of its state on the host, as get_state() gives it; changed in place. EngineError: it is none.
    """
    check(engine().ff_torch_generator_skip(address, size, count))
