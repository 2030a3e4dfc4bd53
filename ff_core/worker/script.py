"""Running the user's script or module as `__main__`, as `python script.py` and `python -m module` would."""

from __future__ import annotations

import importlib.machinery
import io
import json
import os
import pkgutil
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType, TracebackType


def run_as_main(entrypoint: Sequence[str]) -> None:
    """Execute `entrypoint` (["train.py", "--x"] or ["-m", "package.module", "--x"]) in this process.

    sys.argv, sys.path[0], `__main__` and `__file__` are what the interpreter itself would set. What the script raises,
    SystemExit included, goes up. `__main__` stays the script's module afterwards: its exit handlers and threads may use
    it.
    """
    if entrypoint[0] == "-m":
        sys.argv = [*entrypoint[1:]]  # runpy puts the module's file in place of its name
        _set_first_path(script_directory(entrypoint))
        _fresh_main()
        # What the interpreter calls for -m; the public run_module would take __main__ away again at the end.
        runpy._run_module_as_main(entrypoint[1])  # type: ignore[attr-defined]
        return
    script = entrypoint[0]
    sys.argv = list(entrypoint)
    main = _fresh_main()
    path = os.path.abspath(script)  # noqa: PTH100 (the interpreter does not resolve links in __file__ either)
    if pkgutil.get_importer(path) is not None:  # a directory or zip file with a __main__.py
        _set_first_path(script_directory(entrypoint))
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        return
    _set_first_path(script_directory(entrypoint))
    main.__dict__.update(
        __file__=path, __cached__=None, __loader__=importlib.machinery.SourceFileLoader("__main__", path)
    )
    exec(_compiled(path), main.__dict__)


def script_directory(entrypoint: Sequence[str]) -> str:
    """What the interpreter puts first into sys.path for `entrypoint`."""
    if entrypoint[0] == "-m":
        return str(Path.cwd())
    path = os.path.abspath(entrypoint[0])  # noqa: PTH100 (as in run_as_main)
    return path if pkgutil.get_importer(path) is not None else str(Path(entrypoint[0]).resolve().parent)


_ahead: dict[bytes, CodeType] = {}


def compile_ahead(entrypoint: Sequence[str]) -> None:
    """In a spare: compile the script, if it is one; it is run when the spare has got a rank."""
    path = os.path.abspath(entrypoint[0])  # noqa: PTH100 (as in run_as_main)
    if entrypoint[0] != "-m" and pkgutil.get_importer(path) is None:
        _compiled(path, _ahead)


def _compiled(path: str, keep: dict[bytes, CodeType] | None = None) -> CodeType:
    with io.open_code(path) as file:
        source = file.read()
    code = _ahead.get(source)  # only if nobody has changed it since
    if code is None:
        code = compile(source, path, "exec", dont_inherit=True)
        if keep is not None:
            keep[source] = code
    return code


def _fresh_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    sys.modules["__main__"] = main
    return main


def _set_first_path(directory: str) -> None:
    """As the interpreter does, unless it was told not to (-P, PYTHONSAFEPATH)."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, directory)


def report_exception(error: BaseException) -> int:
    """Print `error` as the interpreter would at the script's top level; returns the process's exit code.

    SystemExit is quiet unless it carries a message. Frames of the code that ran the script are left out.
    """
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr, flush=True)
        return 1
    error.__traceback__ = _users_frames(error.__traceback__)
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()
    return 1


def _users_frames(frames: TracebackType | None) -> TracebackType | None:
    """What comes below `run_as_main`; None for a script that does not compile, which has no frames of its own."""
    position = frames
    while position is not None:
        if position.tb_frame.f_code is run_as_main.__code__:
            below = position.tb_next
            return below.tb_next if below is not None and below.tb_frame.f_code is _compiled.__code__ else below
        position = position.tb_next
    return frames


def write_error_file(error: BaseException) -> None:
    """Record `error` in the file TORCHELASTIC_ERROR_FILE, in torchrun's format, unless `@record` has done so."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not name or isinstance(error, SystemExit) or Path(name).exists():
        return
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    record = {
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
        }
    }
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(json.dumps(record))
    except OSError as problem:  # the traceback itself is on stderr already
        print(f"fftrain: cannot write {name}: {problem}", file=sys.stderr, flush=True)
