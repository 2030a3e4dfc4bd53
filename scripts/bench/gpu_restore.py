"""A rank's state from a holder's memory back to a GPU: its slot -> TCP loopback -> newcomer's slot -> device."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import torch

from bench.gpu_rig import MIB, alternate, rate, ratio, rig
from ff_core.copy.arena import Arena
from ff_core.copy.receiver import Receiver
from ff_core.copy.sender import send_slot

_BLOCK = 4 * MIB


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def raw_tcp_s(source: memoryview, target: memoryview) -> float:
    """The same bytes through a plain stream between two threads."""
    near, far = tcp_pair()

    def send() -> None:
        for at in range(0, len(source), _BLOCK):
            near.sendall(source[at : at + _BLOCK])

    sender = threading.Thread(target=send)
    started = time.perf_counter()
    sender.start()
    at = 0
    while at < len(target):
        at += far.recv_into(target[at : at + _BLOCK])
    spent = time.perf_counter() - started
    sender.join()
    near.close()
    far.close()
    return spent


def measure_restore(size: int, rounds: int) -> dict[str, Any]:
    """Restore of `size` bytes against a raw TCP stream of as many; both timed to the last byte, bits compared."""
    phases: dict[str, list[float]] = {"receive": [], "restore": []}
    with rig(size) as one, Receiver() as receiver:
        one.set_flat()
        one.copy_s()
        slot, version = one.version % 2, one.version
        wanted = one.state.clone()
        segments = [(one.state.data_ptr(), size, 0, one.state.get_device())]
        arena = Arena.create(one.arena.layout)
        source = memoryview(bytearray(size))
        target = memoryview(bytearray(size))

        def ours() -> float:
            arena.empty(0)
            arena.empty(1)
            one.state.zero_()
            torch.cuda.synchronize()
            near, far = tcp_pair()
            started = time.perf_counter()
            receiver.attach(far.detach(), arena, 0)
            send_slot(near.detach(), one.arena, slot, 0, 120.0)
            received = time.perf_counter()
            found = arena.find(0, version)
            assert found is not None
            arena.restore(found, segments)
            ended = time.perf_counter()
            phases["receive"].append(received - started)
            phases["restore"].append(ended - received)
            return ended - started

        floor, spent = alternate([lambda: raw_tcp_s(source, target), ours], rounds)
        exact = bool(torch.equal(one.state, wanted))
        receiver.detach(arena)
        arena.close()
        return {
            "gpu.restore_over_tcp": ratio(floor, spent),
            "gpu.restore_bit_exact": exact,
            "raw_tcp_gb_s": rate(size, floor),
            "restore_receive_gb_s": rate(size, phases["receive"][1:]),
            "restore_to_device_gb_s": rate(size, phases["restore"][1:]),
        }
