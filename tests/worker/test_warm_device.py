"""What spares make on devices. There is no device here: torch.cuda is asked through stand-ins."""

from __future__ import annotations

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


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    machine = Devices([10 * GIB] * 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(machine.free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (machine.free[device.index], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: machine.reserved.get(number, 0))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(first_kernels, "run", lambda device: machine.kernels.append(device.index))
    monkeypatch.setattr(warm_device, "_end_context", machine.ended.append)
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


def test_a_spare_gives_back_what_its_rank_does_not_use(devices: Devices) -> None:
    for number in range(3):
        warm_device.warm(number, GIB, {}, nccl=False)
    devices.reserved[2] = 512  # the script has put something there
    warm_device.give_back(torch.device("cuda", 1))
    assert (devices.kernels, devices.ended) == ([0, 1, 2], [0])


def test_a_device_that_is_full_by_now_is_given_back(devices: Devices, capsys: pytest.CaptureFixture[str]) -> None:
    devices.free[0] = GIB - 1
    warm_device.warm(0, GIB, {}, nccl=False)
    assert (devices.kernels, devices.ended) == ([], [0])
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
