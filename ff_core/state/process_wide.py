"""What a script can switch for its whole process: how torch computes, the environment, the folder that it is in, what
happens on a signal, the rights of new files. Places of variables, as `ff_core.state.space` has them.

A script that allows TF32 from some step on, or sets another default type, changes every later result. A replacement
has not gone through that step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch

from ff_core.errors import DifferenceError
from ff_core.state import frames
from ff_core.state.space import Functions, Space
from ff_core.state.tensor_attributes import codes_of_script, names_in

#: torch._C has a _get_ and a _set_ of these, if this version and build of torch has them at all.
_SWITCHES = (
    "cpu_allow_fp16_reduced_precision_reduction", "cublas_allow_fp16_accumulation", "cudnn_benchmark",
    "cudnn_deterministic", "cudnn_enabled", "deterministic_fill_uninitialized_memory", "mkldnn_deterministic",
    "mkldnn_enabled", "nnpack_enabled",
)  # fmt: skip
_REDUCTIONS = ("cublas_allow_bf16_reduced_precision_reduction", "cublas_allow_fp16_reduced_precision_reduction")
_ATTENTION = ("cudnn", "flash", "math", "mem_efficient")
_PRECISIONS = [("generic", "all"), *((library, part) for library in ("cuda", "mkldnn") for part in
               ("all", "matmul", "conv", "rnn"))]  # fmt: skip


NO_FOLDER = (
    "the script has gone to the folder {folder} while it trained, and a replacement cannot go there: {error}. Go to a "
    "folder that all machines have, or write to absolute paths"
)


class _Switch(NamedTuple):
    read: Callable[[], Any]
    write: Callable[[Any], Any]


class OfTorch(Space):
    """torch's process-wide switches that decide about results."""

    def __init__(self) -> None:
        self._switches = _switches()
        super().__init__("torch.", self.values({}))

    def values(self, functions: Functions) -> dict[str, Any]:
        return {name: switch.read() for name, switch in self._switches.items()}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, switch in self._switches.items():  # in this order: the first one changes some of the others
            if name in new and switch.read() != new[name]:
                switch.write(new[name])

    def remove(self, functions: Functions, name: str) -> None:
        pass  # there are always the same


def _switches() -> dict[str, _Switch]:
    found = {"float32_matmul_precision": _Switch(_matmul_precision, _set_matmul_precision)}
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        found |= {f"fp32_precision_{library}_{part}": _precision(library, part) for library, part in _PRECISIONS}
    else:
        found["cudnn_allow_tf32"] = _pair("cudnn_allow_tf32")
    found |= {name: _pair(name) for name in _SWITCHES if hasattr(torch._C, f"_set_{name}")}
    for kind in _REDUCTIONS:
        if type(getattr(torch._C, f"_get_{kind}", lambda: None)()) is bool:
            found[kind] = _pair(kind)
    for kind in _ATTENTION:
        if hasattr(torch.backends.cuda, f"enable_{kind}_sdp"):
            found[f"sdp_{kind}"] = _Switch(
                getattr(torch.backends.cuda, f"{kind}_sdp_enabled"), getattr(torch.backends.cuda, f"enable_{kind}_sdp")
            )
    return {
        **found,
        "default_dtype": _Switch(torch.get_default_dtype, torch.set_default_dtype),
        "deterministic_algorithms": _Switch(_deterministic, _set_deterministic),
        "threads": _Switch(torch.get_num_threads, torch.set_num_threads),
    }


def _pair(name: str) -> _Switch:
    return _Switch(getattr(torch._C, f"_get_{name}"), getattr(torch._C, f"_set_{name}"))


def _precision(library: str, part: str) -> _Switch:
    read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    return _Switch(lambda: read(library, part), lambda value: write(library, part, value))


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the script sets it library by library
        return None


def _set_matmul_precision(value: str | None) -> None:
    if value is not None:
        torch.set_float32_matmul_precision(value)


def _deterministic() -> int:
    """0, 1: an operation that is not is an error, 2: it is a warning."""
    return torch.are_deterministic_algorithms_enabled() * (1 + torch.is_deterministic_algorithms_warn_only_enabled())


def _set_deterministic(value: int) -> None:
    torch.use_deterministic_algorithms(value > 0, warn_only=value == 2)


class OfProcess(Space):
    """The folder that relative paths begin at, and where Python looks for modules."""

    def __init__(self) -> None:
        super().__init__("process.", dict(self.values({})))

    def values(self, functions: Functions) -> dict[str, Any]:
        try:
            return {"folder": str(Path.cwd()), "path": tuple(sys.path)}
        except FileNotFoundError:  # it was deleted
            return {"path": tuple(sys.path)}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        """Raises DifferenceError where this machine has no such folder."""
        if "path" in new:
            sys.path[:] = new["path"]
        try:
            os.chdir(new.get("folder", "."))
        except OSError as error:
            raise DifferenceError(NO_FOLDER.format(folder=new["folder"], error=error)) from None

    def remove(self, functions: Functions, name: str) -> None:
        pass  # there are always the same


class OfSignals(Space):
    """What happens on a signal, if the script decides about that: by the signal's name. Of the training thread only
    where it is the main one: no other can set it."""

    def __init__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._signals = signal.valid_signals() if is_main and "signal" in names_in(codes_of_script()) else set()
        super().__init__("signal.", dict(self.values({})))

    def values(self, functions: Functions) -> dict[str, Any]:
        handlers = ((number, signal.getsignal(number)) for number in self._signals)
        return {_signal_name(number): handler for number, handler in handlers if _is_scripts(handler)}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for number in self._signals:
            if _signal_name(number) in new:
                signal.signal(number, new[_signal_name(number)])

    def remove(self, functions: Functions, name: str) -> None:
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        self.write(functions, {name: default})


def _signal_name(number: int) -> str:
    return number.name if isinstance(number, signal.Signals) else f"SIG{int(number)}"


def _is_scripts(handler: Any) -> bool:
    """Python's and this package's own are not."""
    if isinstance(handler, FunctionType):
        return frames.is_users(handler.__code__.co_filename, handler.__module__)
    return isinstance(handler, signal.Handlers)


class OfUmask(Space):
    """Which rights new files have not, if the script changes that."""

    def __init__(self) -> None:
        self._status = Path("/proc/self/status") if "umask" in names_in(codes_of_script()) else None
        super().__init__("os.", self.values({}))

    def values(self, functions: Functions) -> dict[str, Any]:
        if self._status is None:
            return {}
        # os.umask() can only be asked by setting it, for a moment in which other threads make files.
        line = next((line for line in self._status.read_text().splitlines() if line.startswith("Umask:")), None)
        return {} if line is None else {"umask": int(line.split()[1], 8)}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        os.umask(new["umask"])

    def remove(self, functions: Functions, name: str) -> None:
        pass  # it is always there


class OfEnvironment(Space):
    """os.environ, without this package's own."""

    def __init__(self) -> None:
        self._raw: dict[Any, Any] = {}
        self._now: dict[str, str] = {}
        super().__init__("os.environ.", dict(self.values({})))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        raw = os.environ._data  # type: ignore[attr-defined]
        if raw != self._raw:  # to decode all of them takes long
            self._raw = dict(raw)
            self._now = {name: value for name, value in os.environ.items() if not name.startswith("FF_")}
        return self._now

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        os.environ.update(new)

    def remove(self, functions: Functions, name: str) -> None:
        os.environ.pop(name, None)
