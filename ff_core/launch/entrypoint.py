"""What a launch line runs: a script, a module, or a program of its own."""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ff_core.errors import ConfigError
from ff_core.launch import refusals


def without_interpreter(args: argparse.Namespace) -> None:
    """`--no-python python train.py` is `train.py`: a program of its own would not be protected, and this is none."""
    program, rest = args.training_script, args.training_script_args
    found = shutil.which(program) if args.no_python and not args.module and not args.run_path else None
    if found is None or not Path(program).name.startswith("python") or not rest:
        return
    ours = Path(found).parent == Path(sys.executable).parent
    module = rest[0] == "-m" and len(rest) > 1
    if ours and (module or not rest[0].startswith("-")):
        args.no_python, args.module = False, module
        args.training_script, *args.training_script_args = rest[1:] if module else rest


def words(args: argparse.Namespace) -> list[str]:
    """argv for the workers. Raises ConfigError if there is no such script, module or program."""
    script: str = args.training_script
    rest: list[Any] = args.training_script_args
    if args.no_python and not args.run_path:
        if args.module:
            raise ConfigError("--no-python with --module: allowed: one or the other")
        refusals.refuse_launcher(script)
        if shutil.which(script) is None:
            raise ConfigError(f"{script}: no such program")
        return [script, *rest]
    if args.module and not args.run_path:
        refusals.refuse_launcher(script)
        top = script.partition(".")[0]
        if top not in sys.builtin_module_names and PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) is None:
            raise ConfigError(f"-m {script}: no module named {top!r}")
        return ["-m", script, *rest]
    if not Path(script).exists():
        refusals.refuse_launcher(script)
        raise ConfigError(f"{script}: no such training script (in {Path.cwd()})")
    return [script, *rest]
