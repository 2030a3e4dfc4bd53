"""What a spare makes on the devices that it may get: a context, first kernels, NCCL's kernels.

Each costs a new process a part of its first second, and none depends on the rank. Which device will be its own a spare
does not know, so it warms all that ranks of its machine use. When it is chosen for a rank, it gives the others back.
Nothing that is made here may outlive its context. Pinned memory that stays with torch would be handed out again after
its context is gone, and the process would end in a segmentation fault; then the contexts stay instead.

A library reads some variables once, when it is first used. What would read a variable that the script sets to another
value than the spare has, is left to the rank.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from ff_core.units import format_bytes
from ff_core.worker import first_kernels
from ff_core.worker.preload import digest

#: What is made, and the beginnings of the names of variables that decide about it.
STAGES = {
    "context": ("CUDA_", "NVIDIA_", "PYTORCH_", "TORCH_CUDA", "LD_"),
    "kernels": ("CUBLAS", "CUDNN", "TORCH_CUDNN", "TORCH_BLAS", "TORCH_ALLOW_TF32"),
    "nccl": ("NCCL_",),
}
#: torch itself sets them when it initialises CUDA, unless they are set.
_BY_TORCH = {"CUDA_MODULE_LOADING": "LAZY"}

_warmed: set[int] = set()


def calls(device: torch.device, allowed: int, changed: Mapping[str, str], *, nccl: bool) -> list[list[object]]:
    """In a live rank on `device`: what its spares call (see `Session.call_in_spares`).

    allowed: bytes of a device that a spare may take; 0: nothing is made ahead.  changed: variables that the script has
    set, name -> digest.  nccl: the job has NCCL groups.
    """
    if not allowed:
        return []
    number, count = device.index or 0, torch.cuda.device_count()
    if number != int(os.environ.get("LOCAL_RANK", "0")) % count:
        _say("the script does not use the device of its LOCAL_RANK: spares make nothing on devices")
        return []
    free, total = torch.cuda.mem_get_info(device)
    if free < 2 * allowed:
        _say(f"{format_bytes(free)} of {format_bytes(total)} are free on {device}: spares make nothing on devices, so "
             f'failovers take a second longer ("spare_device_memory_bytes" is {format_bytes(allowed)})')  # fmt: skip
        return []
    deciding = tuple(name for names in STAGES.values() for name in names)
    variables = {name: value for name, value in changed.items() if name.startswith(deciding)}
    devices = range(min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), count))
    return [["ff_core.worker.warm_device:warm", [other, allowed, variables, nccl]] for other in devices]


def warm(number: int, allowed: int, variables: Mapping[str, str], nccl: bool) -> None:
    """In a spare: make on device `number` what fits and what the rank would make in the same way."""
    left = left_to_the_rank(variables)
    for stage, name in left.items():
        _say(f"spares leave {_NAMES[stage]} to the rank: the script sets {name} (set it before `fftrain run`)")
    if "context" in left:
        return
    device = torch.device("cuda", number)
    torch.cuda.init()
    free, _ = torch.cuda.mem_get_info(device)  # makes the context
    _warmed.add(number)
    if free < allowed:
        _give_back(number)
        _say(f"{format_bytes(free)} are free on {device}: spares make nothing there")
        return
    if "kernels" not in left:
        first_kernels.run(device)
    if nccl and "nccl" not in left:
        _make_communicator(number)
    torch.cuda.synchronize(device)
    if os.environ.get("FF_DEBUG"):
        _say(f"warm on {device}: {format_bytes(free - torch.cuda.mem_get_info(device)[0])} beside the context")


_NAMES = {"context": "devices", "kernels": "first kernels", "nccl": "NCCL's kernels"}


def left_to_the_rank(variables: Mapping[str, str]) -> dict[str, str]:
    """Stage -> a variable that the script has set to another value than this process has.

    variables: name -> digest of its value in the script.
    """
    left: dict[str, str] = {}
    for stage, names in STAGES.items():
        for name, wanted in variables.items():
            if name.startswith(names) and digest(os.environ.get(name, _BY_TORCH.get(name))) != wanted:
                left.setdefault(stage, name)
    return left


def used(local_rank: int) -> int | None:
    """The device of `local_rank`, if it has been warmed in this process."""
    device = local_rank % torch.cuda.device_count() if _warmed else None
    return device if device in _warmed else None


def keep(local_rank: int) -> bool:
    """In a spare that is going to be `local_rank`: end the contexts of the warmed devices that it will not use.

    Now, not later: whatever the script makes in such a context, memory that it pins for instance, would end with it.
    Returns whether its own device has room for a rank more, though the dead one's memory may not be back yet: at least
    as much is free as all take now.
    """
    own = used(local_rank)
    others = sorted(_warmed - {own})
    pinned = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) if others else 0
    if pinned:  # in which of them, torch does not tell
        _say(f"the contexts of a spare on devices {others} stay: {format_bytes(pinned)} of host memory are pinned")
    elif others:  # each takes 0.15 s
        with ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(_give_back, others))
    if own is None:
        return False
    free, total = torch.cuda.mem_get_info(torch.device("cuda", own))
    return free >= total - free


def _give_back(number: int) -> None:
    _warmed.discard(number)
    if torch.cuda.memory_reserved(number):
        _say(f"the context of a spare on device {number} stays: a library has put something there")
        return
    code = _end_context(number)
    if code:
        _say(f"the context of a spare on device {number} stays: error {code}")


def _make_communicator(number: int) -> None:
    """A communicator of one loads NCCL's kernels. Not a process group of torch: the first one of a process names it."""
    library = ctypes.CDLL("libnccl.so.2")  # torch has loaded it
    made = ctypes.c_void_p()
    code = library.ncclCommInitAll(ctypes.byref(made), 1, (ctypes.c_int * 1)(number))
    if code == 0:
        code = library.ncclCommDestroy(made)
    if code != 0:
        _say(f"NCCL's kernels are left to the rank: error {code} on device {number}")


def _end_context(number: int) -> int:
    """Returns the driver's error code, 0 if all is well."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    code: int = driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDevicePrimaryCtxReset_v2(device)
    return code


def _say(text: str) -> None:
    print(f"fftrain: {text}", file=sys.stderr, flush=True)
