"""As much of the CUDA driver API as tests need, through ctypes: the real libcuda.so.1 or the stand-in, whichever the
dynamic loader finds first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import Any


class Cuda:
    """Device 0 in its primary context, current in the calling thread."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", c_uint(0))
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), c_int(0))
        self._call("cuCtxPushCurrent_v2", context)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.lib, name)(*arguments)
        assert code == 0, f"{name} gave {code}"

    def stream(self) -> int:
        stream = c_void_p()
        self._call("cuStreamCreateWithPriority", byref(stream), c_uint(1), c_int(0))
        assert stream.value
        return stream.value

    def allocate(self, size: int) -> int:
        address = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_ulonglong(address))

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Every byte becomes `value`, when the stream comes to it."""
        self._call("cuMemsetD8Async", c_ulonglong(address), c_ubyte(value), c_size_t(size), c_void_p(stream))

    def write(self, address: int, data: bytes, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", c_ulonglong(address), data, c_size_t(len(data)), c_void_p(stream))
        self.synchronize(stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", c_void_p(stream))

    def read(self, address: int, size: int, stream: int) -> bytes:
        memory = c_void_p()
        self._call("cuMemHostAlloc", byref(memory), c_size_t(size), c_uint(0))
        self._call("cuMemcpyDtoHAsync_v2", memory, c_ulonglong(address), c_size_t(size), c_void_p(stream))
        self.synchronize(stream)
        data = ctypes.string_at(memory, size)
        self._call("cuMemFreeHost", memory)
        return data

    def hold(self, stream: int) -> Callable[[], None]:
        """The stream stands still from here on, until the result is called."""
        if hasattr(self.lib, "ff_standin_hold"):
            self.lib.ff_standin_hold.restype = c_void_p
            held = c_void_p(self.lib.ff_standin_hold(c_void_p(stream)))
            return lambda: self.lib.ff_standin_let_go(held)
        flag = c_void_p()
        self._call("cuMemHostAlloc", byref(flag), c_size_t(4), c_uint(0))
        assert flag.value
        word = c_uint.from_address(flag.value)
        word.value = 0
        self._call("cuStreamWaitValue32_v2", c_void_p(stream), c_ulonglong(flag.value), c_uint(1), c_uint(0))

        def let_go() -> None:
            word.value = 1
            self.synchronize(stream)
            self._call("cuMemFreeHost", flag)

        return let_go

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within: a CUDA graph is captured in the mode that forbids much to every thread; it must come to be."""
        if hasattr(self.lib, "ff_standin_capture"):
            before = self.lib.ff_standin_capture(c_int(1))
            yield
            assert self.lib.ff_standin_capture(c_int(0)) == before, "a call was refused during the capture"
            return
        stream, graph = self.stream(), c_void_p()
        self._call("cuStreamBeginCapture_v2", c_void_p(stream), c_int(0))
        yield
        self._call("cuStreamEndCapture", c_void_p(stream), byref(graph))
        self._call("cuGraphDestroy", graph)
        self._call("cuStreamDestroy_v2", c_void_p(stream))

    def waiting_downloads(self) -> int | None:
        """Bytes that are still to be downloaded of what has been asked for; None on a real driver."""
        if not hasattr(self.lib, "ff_standin_waiting_downloads"):
            return None
        self.lib.ff_standin_waiting_downloads.restype = c_ulonglong
        waiting: int = self.lib.ff_standin_waiting_downloads()
        return waiting

    def left(self) -> list[int] | None:
        """The stand-in's contexts, streams, device allocations and pinned ranges; None on a real driver."""
        if not hasattr(self.lib, "ff_standin_left"):
            return None
        out = (c_int * 4)()
        self.lib.ff_standin_left.argtypes = [POINTER(c_int)]
        self.lib.ff_standin_left(out)
        return list(out)
