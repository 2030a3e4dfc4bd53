"""Device to slot: how close the engine comes to a plain transfer, what fragments and a running step cost."""

from __future__ import annotations

import ctypes
import time
from statistics import median
from typing import Any

import torch

from bench.gpu_rig import MIB, GpuRig, alternate, rate, ratio, rig


def pinned_copy_s(state: torch.Tensor, target: torch.Tensor) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    target.copy_(state, non_blocking=True)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def slot_holds(one: GpuRig) -> bool:
    """Whether the newest version's slot is the state, bit by bit (in payload order, checksums verified)."""
    out = (ctypes.c_uint8 * one.size)()
    one.arena.restore(one.version % 2, [(ctypes.addressof(out), one.size, 0, -1)])
    return bool(torch.equal(torch.frombuffer(out, dtype=torch.uint8), one.state.cpu()))


def measure_transfer(size: int, rounds: int) -> dict[str, Any]:
    """Checksummed copy into a slot against cudaMemcpyAsync to pinned memory of the same size."""
    with rig(size) as one:
        one.set_flat()
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        floor, ours = alternate([lambda: pinned_copy_s(one.state, pinned), one.copy_s], rounds)
        exact = slot_holds(one)
        return {
            "gpu.d2h_over_memcpy": ratio(floor, ours),
            "gpu.d2h_bit_exact": exact,
            "memcpy_gb_s": rate(size, floor),
            "engine_gb_s": rate(size, ours),
            "bytes": size,
        }


def measure_fragments(size: int, rounds: int, count: int = 10_000) -> dict[str, Any]:
    """The same bytes as one flat tensor and as `count` fragments."""

    def flat() -> float:
        one.set_flat()
        return one.copy_s()

    def equal() -> float:
        one.set_fragments(count, 1)
        return one.copy_s()

    def mixed() -> float:
        one.set_fragments(count, 2, mixed=True)
        return one.copy_s()

    with rig(size) as one:
        flats, equals, mixeds = alternate([flat, equal, mixed], rounds)
        return {
            "gpu.fragments_over_flat": ratio(flats, equals),
            "gpu.fragments_mixed_over_flat": ratio(flats, mixeds),
            "fragments_gb_s": rate(size, equals),
            "fragments_mixed_gb_s": rate(size, mixeds),
            "fragments": count,
        }


class Products:
    """A loop of bf16 matrix products of about `target_s` seconds."""

    def __init__(self, target_s: float, order: int = 8192) -> None:
        self.a = torch.randn(order, order, device="cuda", dtype=torch.bfloat16)
        self.b = torch.randn(order, order, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty_like(self.a)
        self.count = 20
        self.run_s()
        self.count = max(1, int(self.count * target_s / self.run_s()))

    def launch(self) -> None:
        for _ in range(self.count):
            torch.mm(self.a, self.b, out=self.out)

    def run_s(self) -> float:
        """Seconds of the device for the loop alone."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        self.launch()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3


def measure_slowdown(size: int, rounds: int) -> dict[str, Any]:
    """The loop while a version is copied against the loop alone; and how long begin and device_wait keep the caller."""
    blocked: list[float] = []

    def copying() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        busy = one.begin()
        products.launch()
        end.record()
        blocked.append(busy + one.device_wait())
        torch.cuda.synchronize()
        one.wait_complete()
        return begin.elapsed_time(end) / 1e3

    found: dict[str, Any] = {}
    with rig(size) as one:
        one.set_flat()
        one.copy_s()
        products = Products(1.05 * median(one.copy_s() for _ in range(5)))
        for name, prepare in (("", one.set_flat), ("_fragments", lambda: one.set_fragments(10_000, 3))):
            prepare()
            blocked.clear()
            alone, with_copy = alternate([products.run_s, copying], rounds)
            slower = median(b / a for a, b in zip(alone, with_copy, strict=True)) - 1
            found[f"gpu.step_slowdown{name}"] = round(slower, 5)
            found[f"gpu.blocked_ms{name}"] = round(1e3 * median(blocked), 4)
            found[f"loop_ms{name}"] = [round(1e3 * median(alone), 3), round(1e3 * median(with_copy), 3)]
        alone, again = alternate([products.run_s, products.run_s], rounds)
        noise = median(b / a for a, b in zip(alone, again, strict=True)) - 1
        found["loop_noise"] = round(noise, 5)
        found["loop_products"], found["slowdown_bytes"] = products.count, size
    return found


def measure_script_download(size: int, rounds: int) -> dict[str, Any]:
    """How long a script waits for a number from the device (its loss) while a version is on its way to the host."""
    number = torch.ones((), device="cuda")

    def item_s() -> float:
        started = time.perf_counter()
        number.item()
        return time.perf_counter() - started

    def alone() -> float:
        torch.cuda.synchronize()
        return item_s()

    def beside() -> float:
        torch.cuda.synchronize()
        one.begin()
        time.sleep(0.003)  # the copy is under way
        seconds = item_s()
        one.wait_complete()
        return seconds

    with rig(size) as one:
        one.set_flat()
        one.copy_s()
        quiet, waited = alternate([alone, beside], rounds)
    return {
        "gpu.item_ms": round(1e3 * median(waited), 4),
        "item_worst_ms": round(1e3 * max(waited), 4),
        "item_alone_ms": round(1e3 * median(quiet), 4),
    }


def measure_all(scale: int, rounds: int) -> dict[str, Any]:
    """scale: MiB of state."""
    return {
        **measure_transfer(2 * scale * MIB, rounds),
        **measure_fragments(scale * MIB, rounds),
        **measure_slowdown(2 * scale * MIB, rounds),
        **measure_script_download(2 * scale * MIB, rounds),
    }
