"""Builds the copy engine's shared library with a C++17 compiler and nothing else: no torch, no CUDA, no Python headers.

Where nvcc is found ($NVCC, else on the PATH, else /usr/local/cuda/bin) the gather kernel is built in too. Without it
the engine copies from CUDA devices all the same, but many small tensors cost more.

    python -m ff_core.csrc.build                 # in place: ff_core/copy/_ff_engine.so; compiles what has changed
    python -m ff_core.csrc.build --out DIR/x.so --sanitize thread

The C++ compiler is $CXX, else g++, else c++. This module needs the standard library only: setup.py calls build() before
anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ff_core.csrc.object_cache import ObjectCache

SOURCE_DIR = Path(__file__).resolve().parent
LIBRARY = SOURCE_DIR.parent / "copy" / "_ff_engine.so"
SANITIZERS = ("address", "thread", "undefined")
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
KERNEL_IMAGE = "cuda_gather_image.inc"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
# Machine code for what is common, and PTX that the driver compiles for everything newer than the oldest it names.
_CUDA_TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_75,code=compute_75"]


class BuildError(RuntimeError):
    """The compiler is missing or failed; the message carries its output."""


def compiler() -> list[str]:
    """The C++ compiler's command, from $CXX or the first of g++ and c++ that exists."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler: install g++ (Debian: apt install g++) or set CXX")


def cuda_compiler() -> list[str] | None:
    """nvcc's command, or None if this machine has none. $NVCC set to nothing: as if it had none."""
    if "NVCC" in os.environ:
        return shlex.split(os.environ["NVCC"]) or None
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return [found] if found else None


def flags(sanitize: str | None) -> list[str]:
    """Compile flags. No -march: what needs newer instructions is chosen at run time."""
    if sanitize is None:
        return ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-pthread", "-fvisibility=hidden", *WARNINGS]
    if sanitize not in SANITIZERS:
        raise ValueError(f"sanitize is {sanitize!r}, allowed are {', '.join(SANITIZERS)} or None")
    checks = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"]
    # -g1: functions and lines, which is what reports name; everything else costs a fifth of the time to compile.
    return ["-std=c++17", "-O1", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden", *WARNINGS, *checks]


def _run(command: list[str]) -> str:
    """Runs it and returns what it wrote."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed with code {done.returncode}:\n{done.stdout}")
    return done.stdout


def _version(command: list[str], cache: ObjectCache | None) -> str:
    """Which compiler `command` is; asked only for the cache."""
    return "" if cache is None else _run([*command, "--version"])


def sources() -> list[Path]:
    """The engine's C++ files."""
    return sorted(SOURCE_DIR.rglob("*.cpp"))


def headers() -> list[Path]:
    """What the engine's C++ files include. They are named from SOURCE_DIR: "base/error.h"."""
    return sorted(SOURCE_DIR.rglob("*.h"))


def interface() -> str:
    """Fingerprint of ff_engine.h. An engine with another one does not fit the Python beside it."""
    return hashlib.sha256((SOURCE_DIR / "ff_engine.h").read_bytes()).hexdigest()[:16]


def included(file: Path) -> list[Path]:
    """The files that `file` includes by a quoted name, at any depth. Names are looked up beside the file that has
    them, then from SOURCE_DIR. One that is in neither is the kernel image, which compile_kernels() makes.
    """
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        for name in INCLUDE.findall(one.read_text()):
            for path in (one.parent / name, SOURCE_DIR / name):
                if path.is_file():
                    if path.resolve() not in found:
                        found[path.resolve()] = None
                        waiting.append(path)
                    break
    return sorted(found)


def _make(cache: ObjectCache | None, command: list[str], inputs: list[Path], out: Path, recipe: list[str]) -> None:
    """Runs `command`, which makes `out` from the inputs and what they include, unless the cache has that.

    recipe: what else decides about the result: the compiler and its options.
    """
    if cache is None:
        _run(command)
        return
    files = [*inputs, *(header for file in inputs for header in included(file))]
    texts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    fingerprint = hashlib.sha256("\n".join([*recipe, *texts]).encode()).hexdigest()
    if not cache.fetch(fingerprint, out):
        _run(command)
        cache.store(fingerprint, out)


def compile_kernels(directory: Path, cache: ObjectCache | None = None) -> Path | None:
    """The gather kernel's fat binary as C initialisers in `directory`, for cuda_image.cpp; None without nvcc."""
    nvcc = cuda_compiler()
    if nvcc is None:
        return None
    binary = directory / "cuda_gather.fatbin"
    source = SOURCE_DIR / "device" / "cuda_gather.cu"
    targets = [argument for target in _CUDA_TARGETS for argument in ("-gencode", target)]
    base = [*nvcc, "-std=c++17", "-O3", "-Werror", "all-warnings", f"-I{SOURCE_DIR}", "-fatbin", *targets, str(source)]
    version = _version(nvcc, cache)
    _make(cache, [*base, "-o", str(binary)], [source], binary, [version, *base])
    out = directory / KERNEL_IMAGE
    out.write_text(",".join(map(str, binary.read_bytes())))
    return out


def compile_objects(
    files: list[Path], directory: Path, sanitize: str | None = None, cache: ObjectCache | None = None
) -> list[Path]:
    """Compiles `files` into `directory`, as many at a time as there are processors; returns the object files.

    cache: has what was compiled before from the same text, with the same compiler and flags, and gets the rest.
    """
    base = [*compiler(), *flags(sanitize), f"-I{SOURCE_DIR}", f'-DFF_INTERFACE="{interface()}"', "-c"]
    version = _version(compiler(), cache)
    objects = [directory / f"{number}-{file.stem}.o" for number, file in enumerate(files)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        wants_kernels = any(file.stem == "cuda_image" for file in files)
        kernels = pool.submit(compile_kernels, directory, cache) if wants_kernels else None  # the longest, so first

        def compile_one(file: Path, out: Path) -> None:
            image = kernels.result() if kernels is not None and file.stem == "cuda_image" else None
            extra = [image] if image is not None else []
            command = [*base, *(f"-I{path.parent}" for path in extra), str(file), "-o", str(out)]
            _make(cache, command, [file, *extra], out, [version, *base, str(file)])

        list(pool.map(compile_one, files, objects))
    if cache is not None:
        cache.prune()
    return objects


def link(objects: list[Path], out: Path, sanitize: str | None = None, shared: bool = True) -> Path:
    """Links `objects` into a shared library or, with shared=False, a program. `out` appears whole or not at all."""
    command = [*compiler(), *flags(sanitize), *(str(obj) for obj in objects), "-ldl"]
    if shared:
        command.append("-shared")
    if sanitize is None:
        # Self-contained: a Python that brings an older libstdc++ (conda) must not break it.
        command += ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-s"]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _run([*command, "-o", str(partial)])
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def build(out: Path, sanitize: str | None = None, cache: ObjectCache | None = None) -> Path:
    """Compiles and links the engine into the shared library `out` and returns it.

    sanitize: None, "address", "thread" or "undefined".  cache: as for compile_objects.  Raises BuildError with the
    compiler's output, ValueError for an unknown sanitizer.
    """
    flags(sanitize)
    with tempfile.TemporaryDirectory(prefix="ff-engine-") as directory:
        return link(compile_objects(sources(), Path(directory), sanitize, cache), Path(out), sanitize)


def is_current(library: Path = LIBRARY) -> bool:
    """Whether `library` exists and is newer than every source."""
    if not library.exists():
        return False
    inputs = [*sources(), *headers(), *SOURCE_DIR.rglob("*.cu"), Path(__file__)]
    return library.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


def main() -> None:
    from ff_core.csrc.object_cache import of_environment  # not at the top: setup.py has this file only

    parser = argparse.ArgumentParser(prog="python -m ff_core.csrc.build", description="build the copy engine")
    parser.add_argument("--out", type=Path, default=LIBRARY, help="where the library goes (default: in place)")
    parser.add_argument("--sanitize", choices=SANITIZERS, help="build with a sanitizer")
    parser.add_argument(
        "--if-needed", action="store_true", help="do nothing when the library is newer than its sources"
    )
    arguments = parser.parse_args()
    if arguments.if_needed and arguments.sanitize is None and is_current(arguments.out):
        return
    try:
        print(build(arguments.out, arguments.sanitize, of_environment()))
    except BuildError as error:
        raise SystemExit(f"engine build failed: {error}") from None


if __name__ == "__main__":
    main()
