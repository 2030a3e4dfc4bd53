#!/usr/bin/env python3
"""Sets up the environment in which this project is developed, tested and demonstrated.

A virtual environment with torch, DeepSpeed, megatron-core and the project itself, and DeepSpeed's C++ operators for the
CPU compiled ahead, so that the first job does not spend minutes on them. Running it again does what is missing.
`make setup` runs:

    python3 scripts/setup_env.py [--venv .venv] [--torch 2.13.0] [--sanitizers]

Needs only Python's standard library. Exit code 1 with a message that says what to install when something is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
DEEPSPEED = "0.19.8"
MEGATRON = "0.16.1"
OPERATORS = ("ShareMemCommBuilder", "CPUAdamBuilder", "FusedAdamBuilder")
# Needed before `--no-build-isolation`, with which DeepSpeed's and this project's setup.py run in the environment.
BUILD_TOOLS = (
    "setuptools", "wheel", "packaging", "ninja", "py-cpuinfo", "hjson", "psutil", "pydantic", "msgpack", "tqdm",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up the development environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="directory of the virtual environment")
    parser.add_argument("--torch", default="2.13.0", metavar="VERSION", help="torch version to install")
    parser.add_argument("--sanitizers", action="store_true", help="compile the engine for its sanitizer tests, too")
    arguments = parser.parse_args()

    missing = missing_prerequisites()
    if missing:
        print("setup: this machine lacks what the build needs:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    try:
        python = make_venv(arguments.venv.resolve())
        with Meanwhile() as meanwhile:
            compile_engine(python, meanwhile, arguments.sanitizers)  # pip keeps one core busy at most
            install_frameworks(python, arguments.torch)
            compile_operators(python, meanwhile)
            meanwhile.wait("engine")
            install_project(python)
            meanwhile.wait_for_all()
    except subprocess.CalledProcessError as error:
        command = " ".join(str(word) for word in error.cmd)
        print(f"setup: failed with exit code {error.returncode}: {command[:300]}", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"setup: a compilation did not end in half an hour and was killed: {error.cmd}", file=sys.stderr)
        return 1
    say(f"ready: {python.parent}/fftrain")
    return 0


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def missing_prerequisites() -> list[str]:
    """One line for each thing that is missing, with the Debian package that has it."""
    lines = []
    if sys.version_info < (3, 10):  # noqa: UP036 - this script is what tells an older Python
        lines.append(f"Python 3.10 or newer (this is {sys.version.split()[0]}): apt-get install python3")
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        lines.append(f"a C++ compiler ({compiler}): apt-get install g++, or set CXX")
    if shutil.which("c++") is None:
        lines.append("the command c++, which torch compiles operators with: apt-get install g++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        lines.append(f"Python's headers ({header}): apt-get install python3-dev")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        lines.append("Python's venv module with ensurepip: apt-get install python3-venv")
    return lines


def make_venv(venv: Path) -> Path:
    """Create the environment, anew if it belongs to another Python. Returns its interpreter."""
    python = venv / "bin" / "python"
    if python.exists():
        code = "import sys, pip; print(*sys.version_info[:2])"
        probe = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if probe.returncode == 0 and probe.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return python
        say(f"{venv} does not work with Python {sys.version_info[0]}.{sys.version_info[1]}; making it anew")
        shutil.rmtree(venv)
    say(f"making {venv}")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    return python


def installed_version(python: Path, package: str) -> str:
    """The version of an installed distribution without its local part ("2.13.0+cpu" -> "2.13.0"); empty if absent."""
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    done = subprocess.run([python, "-c", code, package], capture_output=True, text=True)
    return done.stdout.strip().split("+")[0] if done.returncode == 0 else ""


def pip_install(python: Path) -> list[str | Path]:
    """The beginning of a command line; write_constraints() comes before it is run."""
    # Ten thousand files would be compiled to bytecode, of which a tenth is ever imported: Python does it then.
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    return [*pip, "--constraint", python.parent.parent / "constraints.txt"]


def install_frameworks(python: Path, torch: str) -> None:
    write_constraints(python.parent.parent, torch)
    pip = pip_install(python)
    # torch comes first: DeepSpeed's setup.py imports it.
    if installed_version(python, "torch") != torch:
        say(f"installing torch {torch} (several hundred megabytes)")
        subprocess.run([*pip, f"torch=={torch}", "numpy"], check=True)
    if installed_version(python, "deepspeed") != DEEPSPEED:
        say(f"installing deepspeed {DEEPSPEED}")
        subprocess.run([*pip, *BUILD_TOOLS], check=True)
        environment = {**os.environ, "DS_BUILD_OPS": "0"}
        subprocess.run([*pip, "--no-build-isolation", f"deepspeed=={DEEPSPEED}"], check=True, env=environment)


def install_project(python: Path) -> None:
    pip = pip_install(python)
    if installed_version(python, "megatron-core") != MEGATRON:
        say(f"installing megatron-core {MEGATRON}")
        # What it needs (torch, numpy, packaging) is there; its own wish for a torch must not replace this one.
        subprocess.run([*pip, "packaging"], check=True)
        subprocess.run([*pip, "--no-deps", f"megatron-core=={MEGATRON}"], check=True)
    say("building and installing this project")
    subprocess.run([*pip, *BUILD_TOOLS], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", f"{ROOT}[dev]"], check=True)


def write_constraints(venv: Path, torch: str) -> Path:
    """constraints.txt for this torch. Another version brings packages of its own along, which are left free then."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if f"torch=={torch}" not in lines:
        lines = [line for line in lines if line.split("==")[0] not in ("torch", "setuptools", "sympy", "numpy")]
        lines.append(f"torch=={torch}")
    path = venv / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


class Meanwhile:
    """Compilations that run beside everything else. Those that still run when the block ends are killed."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.compiling: dict[str, tuple[subprocess.Popen[bytes], IO[str]]] = {}

    def __enter__(self) -> Meanwhile:
        return self

    def __exit__(self, *_: object) -> None:
        for process, output in self.compiling.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its compilers, too
            process.wait()
            output.close()

    def start(self, name: str, command: list[str | Path], environment: dict[str, str]) -> None:
        """Its output is shown if it fails."""
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the compilation
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        self.compiling[name] = process, output

    def wait(self, name: str) -> None:
        """Until it is ready, saying every half minute that it goes on. Raises after half an hour, or if it failed."""
        process, output = self.compiling[name]
        wait_with_progress(process, name, self.begin)
        if process.returncode:
            output.seek(0)
            print(output.read()[-5000:], file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, ["compile", name])

    def wait_for_all(self) -> None:
        """Says when each was ready."""
        for name in self.compiling:
            self.wait(name)
            say(f"{name} ready after {time.monotonic() - self.begin:.0f} s")


def compile_engine(python: Path, meanwhile: Meanwhile, sanitizers: bool) -> None:
    """The copy engine, which is waited for first; and the objects of its tests, which are kept in the environment."""
    meanwhile.start("engine", [python, "-m", "ff_core.csrc.build", "--if-needed"], {**os.environ})
    if sanitizers:
        meanwhile.start("sanitizers", ["nice", python, "-m", "tests.csrc.programs"], {**os.environ})


def compile_operators(python: Path, meanwhile: Meanwhile) -> None:
    """DeepSpeed's CPU operators, all being compiled at once; loaded where they are compiled already."""
    folders = [str(quick_compiler(python)), str(python.parent), os.environ.get("PATH", "")]  # ninja is there
    path = os.pathsep.join(folders)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": path}
    code = (
        "import sys; from deepspeed.accelerator import get_accelerator; "
        "get_accelerator().create_op_builder(sys.argv[1]).load(verbose=False)"
    )
    clear_stale_locks(python, environment)
    say(f"compiling DeepSpeed's operators {', '.join(OPERATORS)} (minutes the first time)")
    for operator in OPERATORS:
        # pip goes first: it keeps one core busy at most, and nothing can be installed beside the tests.
        meanwhile.start(operator, ["nice", "-n", "5", python, "-c", code, operator], environment)


def quick_compiler(python: Path) -> Path:
    """A folder with a c++ that leaves out what only debuggers read, a third of a compilation, and most optimisation, a
    fifth. For torch it is the compiler of that name: it finds later what was compiled with it."""
    folder = python.parents[1] / "compiler"
    folder.mkdir(exist_ok=True)
    (folder / "c++").write_text(f'#!/bin/sh\nexec "{shutil.which("c++")}" "$@" -g0 -O1\n')
    (folder / "c++").chmod(0o755)
    return folder


def wait_with_progress(process: subprocess.Popen[bytes], name: str, begin: float) -> None:
    while True:
        try:
            process.wait(timeout=30)
            return
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - begin
            if elapsed > 1800:
                raise
            say(f"still compiling {name} after {elapsed:.0f} s")


def clear_stale_locks(python: Path, environment: dict[str, str]) -> None:
    """Remove the locks of compilations that were killed: later ones would wait for them for ever."""
    # The same rule by which torch finds the directory, asked of torch itself.
    code = "from torch.utils.cpp_extension import _get_build_directory as d; print(d('x', False))"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    probe = Path(done.stdout.strip().splitlines()[-1])
    if not any(probe.iterdir()):
        probe.rmdir()
    for lock in probe.parent.glob("*/lock"):
        if not in_use(lock.parent):
            say(f"removing {lock}, left by a compilation that was killed")
            lock.unlink(missing_ok=True)


def in_use(directory: Path) -> bool:
    """True if a process works in `directory`, as the compilation that holds its lock does."""
    # A holder takes the lock shortly before it starts the compiler there.
    time.sleep(max(0.0, 5 - (time.time() - (directory / "lock").stat().st_mtime)))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == directory:
                return True
        except OSError:  # ended meanwhile, or another user's
            continue
    return False


if __name__ == "__main__":
    sys.exit(main())
