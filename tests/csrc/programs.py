"""Builds the engine's C++ tests. Their objects, and the engine's with a sanitizer, are kept from run to run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ff_core.csrc import build
from ff_core.csrc.object_cache import of_environment

HERE = Path(__file__).parent

STANDIN = sorted(HERE.glob("cuda_standin*.cpp"))
"""A library that stands in for the CUDA driver's."""


def compile_cached(files: list[Path], directory: Path, sanitize: str | None = None) -> list[Path]:
    """build.compile_objects with the kept objects."""
    return build.compile_objects(files, directory, sanitize, of_environment())


def build_standin(directory: Path, sanitize: str | None = None) -> Path:
    """Builds the stand-in as libcuda.so.1 in `directory` and returns the directory, for LD_LIBRARY_PATH."""
    build.link(compile_cached(STANDIN, directory, sanitize), directory / "libcuda.so.1", sanitize)
    return directory


def build_program(
    name: str, files: list[Path], directory: Path, sanitize: str, libraries: tuple[Path, ...] = ()
) -> list[str]:
    """Builds the program `name` in `directory` and returns the command that runs it."""
    objects = compile_cached(files, directory, sanitize)
    path = build.link([*objects, *libraries], directory / name, sanitize, shared=False)
    # ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
    setarch = shutil.which("setarch")
    return [setarch, "-R", str(path)] if setarch and sanitize == "thread" else [str(path)]


def main() -> None:
    """Compiles ahead what the tests with sanitizers link: scripts/setup_env.py --sanitizers."""
    files = [*build.sources(), *STANDIN, HERE / "device_stress.cpp", *sorted(HERE.glob("stress*.cpp"))]
    with tempfile.TemporaryDirectory(prefix="ff-objects-") as directory:
        for sanitizer in ("address", "thread"):
            compile_cached(files, Path(directory), sanitizer)


if __name__ == "__main__":
    main()
