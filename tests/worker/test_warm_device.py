"""What spares make on devices. There is no device here: torch.cuda is asked through stand-ins."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ff_core.worker import first_kernels, warm_device
from ff_core.worker.preload import digest

GIB = 1 << 30
DEVICE = torch.device("cuda", 1)


class Devices:
    """`torch.cuda` of a machine: free bytes per device, and what was done."""

    def __init__(self, free: list[int]) -> None:
        self.free, self.kernels, self.ended, self.reserved = free, list[int](), list[int](), dict[int, int]()
        self.pinned = 0

    def end(self, number: int) -> int:
        self.ended.append(number)
        return 0


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    machine = Devices([10 * GIB] * 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(machine.free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (machine.free[device.index], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: machine.reserved.get(number, 0))
    monkeypatch.setattr(torch.cuda, "host_memory_stats", lambda: {"allocated_bytes.current": machine.pinned})
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(first_kernels, "run", lambda device: machine.kernels.append(device.index))
    monkeypatch.setattr(warm_device, "_end_context", machine.end)
    monkeypatch.setattr(warm_device, "_warmed", set[int]())
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    return machine


def test_spares_warm_every_device_that_ranks_of_the_machine_use(devices: Devices) -> None:
    asked = warm_device.calls(DEVICE, GIB, {"NCCL_DEBUG": "x", "HOME": "y"}, nccl=True)
    assert asked == [
        ["ff_core.worker.warm_device:warm", [number, GIB, {"NCCL_DEBUG": "x"}, True]] for number in range(3)
    ]


def test_nothing_is_made_when_it_is_switched_off(devices: Devices) -> None:
    assert warm_device.calls(DEVICE, 0, {}, nccl=True) == []


def test_nothing_is_made_on_devices_that_are_full(devices: Devices, capsys: pytest.CaptureFixture[str]) -> None:
    devices.free[1] = 2 * GIB - 1
    assert warm_device.calls(DEVICE, GIB, {}, nccl=True) == []
    assert "spares make nothing on devices" in capsys.readouterr().err


def test_nothing_is_made_if_devices_do_not_follow_the_local_rank(
    devices: Devices, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_device.calls(torch.device("cuda", 0), GIB, {}, nccl=True) == []
    assert "LOCAL_RANK" in capsys.readouterr().err


def warm_all(devices: Devices) -> None:
    for number in range(3):
        warm_device.warm(number, GIB, {}, nccl=False)
    assert devices.kernels == [0, 1, 2]


def test_a_spare_that_is_chosen_gives_back_what_its_rank_does_not_use(devices: Devices) -> None:
    warm_all(devices)
    warm_device.keep(1)
    assert devices.ended == [0, 2]
    warm_device.keep(1)
    assert devices.ended == [0, 2]


@pytest.mark.parametrize(("free", "room"), [(40 * GIB, True), (40 * GIB - 1, False)])
def test_a_device_has_room_if_as_much_is_free_as_all_take(devices: Devices, free: int, room: bool) -> None:
    warm_all(devices)
    devices.free[1] = free
    assert warm_device.keep(1) is room


def test_nothing_is_known_of_a_device_that_was_not_warmed(devices: Devices) -> None:
    assert warm_device.keep(1) is False
    warm_device.warm(0, GIB, {}, nccl=False)
    assert warm_device.keep(1) is False


def test_ranks_that_share_devices_keep_their_own(devices: Devices) -> None:
    warm_all(devices)
    warm_device.keep(5)  # of four devices
    assert devices.ended == [0, 2]


def test_a_device_where_something_lies_is_not_given_back(devices: Devices, capsys: pytest.CaptureFixture[str]) -> None:
    warm_all(devices)
    devices.reserved[2] = 512
    warm_device.keep(1)
    assert devices.ended == [0]
    assert "device 2 stays: a library has put something there" in capsys.readouterr().err


def test_contexts_stay_while_torch_keeps_pinned_memory(devices: Devices, capsys: pytest.CaptureFixture[str]) -> None:
    warm_all(devices)
    devices.pinned = 512
    warm_device.keep(1)
    assert devices.ended == []
    assert "devices [0, 2] stay: 512 B of host memory are pinned" in capsys.readouterr().err


def test_a_context_that_cannot_be_ended_stays(
    devices: Devices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warm_all(devices)
    monkeypatch.setattr(warm_device, "_end_context", lambda number: 201)
    warm_device.keep(1)
    assert "device 0 stays: error 201" in capsys.readouterr().err


def test_a_device_that_is_full_by_now_is_given_back(devices: Devices, capsys: pytest.CaptureFixture[str]) -> None:
    warm_device.warm(1, GIB, {}, nccl=False)
    devices.free[0] = GIB - 1
    warm_device.warm(0, GIB, {}, nccl=False)
    assert (devices.kernels, devices.ended) == ([1], [0])
    assert "spares make nothing there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("CUDA_DEVICE_MAX_CONNECTIONS", "context"),
        ("PYTORCH_CUDA_ALLOC_CONF", "context"),
        ("CUBLAS_WORKSPACE_CONFIG", "kernels"),
        ("NCCL_ALGO", "nccl"),
    ],
)
def test_what_would_read_a_variable_of_the_script_is_left_to_the_rank(
    name: str, left: str, devices: Devices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(name, raising=False)
    variables = {name: digest("1")}
    assert warm_device.left_to_the_rank(variables) == {left: name}
    warm_device.warm(0, GIB, variables, nccl=False)
    assert devices.kernels == ([0] if left == "nccl" else [])
    assert f"the script sets {name}" in capsys.readouterr().err
    monkeypatch.setenv(name, "1")
    assert warm_device.left_to_the_rank(variables) == {}


def test_torchs_own_variable_is_no_difference(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    assert warm_device.left_to_the_rank({"CUDA_MODULE_LOADING": digest("LAZY")}) == {}
    assert warm_device.left_to_the_rank({"CUDA_MODULE_LOADING": digest("EAGER")}) == {"context": "CUDA_MODULE_LOADING"}


def in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


WARM = """
import torch
from ff_core.worker import warm_device
for number in range(torch.cuda.device_count()):
    warm_device.warm(number, 1 << 30, {}, nccl=True)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_nothing_of_torch_is_left_on_a_warmed_device() -> None:
    """Memory that is pinned there would be handed out again after its context is gone."""
    in_a_process_of_its_own(
        WARM + "assert torch.cuda.host_memory_stats().get('allocated_bytes.current', 0) == 0\n"
        "assert not any(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))\n"
    )


TWO_DEVICES = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs 2 CUDA devices, torch sees {torch.cuda.device_count()}"
)


@TWO_DEVICES
def test_pinned_memory_of_a_warmed_device_is_not_handed_out_without_its_context() -> None:
    """As if a kernel that is warmed pinned memory and torch kept it."""
    in_a_process_of_its_own(
        WARM
        + """
with torch.cuda.device(0):
    torch.ones(1, device="cuda").item()
assert torch.cuda.host_memory_stats()["allocated_bytes.current"] > 0
warm_device.keep(1)
torch.cuda.set_device(1)
assert torch.ones(1, device="cuda").item() == 1
"""
    )


@TWO_DEVICES
@pytest.mark.parametrize("kept", [0, 1])
def test_what_a_rank_does_after_devices_were_given_back(kept: int) -> None:
    in_a_process_of_its_own(
        WARM
        + f"""
warm_device.keep({kept})
torch.cuda.set_device({kept})
for number in {kept}, {1 - kept}:  # what was given back can be used as ever
    with torch.cuda.device(number):
        values = torch.arange(10.0).pin_memory().cuda(non_blocking=True).requires_grad_()
        (values @ torch.ones(10, device="cuda")).backward()
        assert values.grad.sum().item() == 10
        assert torch.randn(300, 300, device="cuda").mm(torch.ones(300, 300, device="cuda")).isfinite().all().item()
"""
    )
