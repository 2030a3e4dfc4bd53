"""Builds the stand-in for the CUDA driver's library."""

from __future__ import annotations

from pathlib import Path

from ff_core.csrc import build

SOURCE = Path(__file__).with_name("cuda_standin.cpp")


def build_standin(directory: Path, sanitize: str | None = None) -> Path:
    """Compiles libcuda.so.1 into `directory` and returns the directory, for LD_LIBRARY_PATH."""
    objects = build.compile_objects([SOURCE], directory, sanitize)
    build.link(objects, directory / "libcuda.so.1", sanitize)
    return directory
