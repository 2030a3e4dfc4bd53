"""The script's own frames: what is running now and was written by the user, not by a library."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ff_core.state.installed import is_library

OURS = frozenset({"ff_core", "ff_deepspeed", "ff_megatron"})
FRAMEWORKS = OURS | {"accelerate", "deepspeed", "megatron", "torch", "transformers"}


def of_script() -> Iterator[FrameType]:
    """Frames of the user's own code in this thread, innermost first, up to that of the script itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename, frame.f_globals.get("__name__")):
            yield frame
            if frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_name == "<module>":
                return
        frame = frame.f_back


def caller() -> FrameType:
    """The innermost frame that is of no framework: whose code has called one."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _of_framework(frame):
        frame = frame.f_back
    return frame


def _of_framework(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).split(".", 1)[0] in FRAMEWORKS


def set_variables(frame: FrameType, variables: dict[str, Any]) -> None:
    """Give a running function's variables values, by name."""
    held = frame.f_locals
    held.update(variables)
    if type(held) is dict:  # before Python 3.13 a copy, which debuggers write back in this way
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        held.clear()


def locals_of(frame: FrameType) -> dict[str, Any]:
    """The variables of a running function, a copy."""
    held = frame.f_locals
    copied = dict(held)
    if type(held) is dict:  # before Python 3.13 the frame keeps it, and so would keep a loss and its graph alive
        held.clear()
    return copied


def line() -> str:
    """Where the script is: "train.py:12", or "the script" if none of its code is running."""
    for frame in of_script():
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return "the script"


#: What multiprocessing, and multiprocess of the package `datasets`, call the __main__ that is there when they are
#: imported: in a rank that may be the script, in a spare it is none. Its variables would be there twice, or half. In a
#: process of a data loader that was spawned the script's classes say that they are of this module, and rightly.
_SECOND_MAIN = "__mp_main__"


@functools.cache
def is_users(file: str, module: str | None) -> bool:
    """Whether `file` of `module` is the user's: of no library, and not of a framework whose sources lie elsewhere."""
    if file.startswith("<") or str(module).split(".", 1)[0] in FRAMEWORKS:
        return False
    return not is_library(file, module)


def is_users_module(name: str | None) -> bool:
    """Whether a module of that name is loaded, and is the user's: what a class or a function of it says of itself."""
    file = getattr(sys.modules.get(str(name)), "__file__", None)
    return file is not None and is_users(file, name)


def users_modules() -> list[str]:
    """Names of the user's modules that are loaded, in the order of their import. Without the script's second name."""
    found = []
    for name, module in list(sys.modules.items()):
        if _of_libraries.get(name) is module and module is not None:
            continue
        if is_users_module(name):
            found += [name] if name != _SECOND_MAIN else []
        elif getattr(module, "__file__", None) is not None:
            _of_libraries[name] = module
    return found


_of_libraries: dict[str, Any] = {}
"""Thousands, most of them looked at before: a newcomer asks several times."""
