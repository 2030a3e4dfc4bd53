"""Package build. Python settings of the tools are in pyproject.toml.

The copy engine is a plain shared library with a C interface that ctypes loads, not a Python extension module. So
building it needs a C++ compiler and nothing else (no torch, no nvcc, no Python headers), one wheel serves every Python
and every torch (tag py3-none-<platform>), and each call releases the GIL by itself.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from setuptools import Command, find_namespace_packages, setup
from setuptools.command.build import build
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools older than 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
LIBRARY = Path("ff_core/copy/_ff_engine.so")


class BuildEngine(Command):
    """Compiles the copy engine: into the build directory, or beside its sources for an editable install."""

    description = "compile the copy engine"
    user_options = [("build-lib=", "b", "directory to build in")]
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        spec = importlib.util.spec_from_file_location("ff_engine_build", ROOT / "ff_core/csrc/build.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        out = self._target()
        out.parent.mkdir(parents=True, exist_ok=True)
        if not (self.editable_mode and module.is_current(out)):  # scripts/setup_env.py has compiled it already
            module.build(out)

    def _target(self) -> Path:
        return ROOT / LIBRARY if self.editable_mode else Path(str(self.build_lib)) / LIBRARY

    # What setuptools asks of a sub-command of `build`.
    def get_outputs(self) -> list[str]:
        return [str(self._target())]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        files = sorted((ROOT / "ff_core/csrc").rglob("*"))
        return [str(p.relative_to(ROOT)) for p in files if p.suffix in (".cpp", ".h", ".cu", ".py")]


class Build(build):
    sub_commands = [*build.sub_commands, ("build_engine", None)]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True  # the wheel belongs to a platform


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


version = re.search(r'^__version__ = "(.+)"$', (ROOT / "ff_core/__init__.py").read_text(), re.MULTILINE)
assert version is not None
readme = ROOT / "README.md"

setup(
    name="fftrainer",
    version=version.group(1),
    description="Training jobs that survive the loss of a rank and continue bit-exactly, from copies in memory",
    long_description=readme.read_text() if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_namespace_packages(
            include=["ff_core", "ff_core.*", "ff_deepspeed", "ff_deepspeed.*", "ff_megatron"],
            exclude=["ff_core.csrc.*"],  # folders of C++
        ),
        "ff_core.patches",
    ],
    package_dir={"ff_core.patches": "patches"},
    package_data={
        "ff_core": ["py.typed"],
        "ff_core.csrc": ["*.h", "*.cpp", "*/*.h", "*/*.cpp", "*/*.cu"],
        "ff_core.patches": ["*.patch"],
    },
    distclass=BinaryDistribution,
    cmdclass={"build": Build, "build_engine": BuildEngine, "bdist_wheel": Wheel},
    install_requires=["grpcio>=1.60", "msgpack>=1.0.5", "psutil>=5.9", "pydantic>=2.6", "rich>=13"],
    extras_require={
        # DeepSpeed's inner workings are hooked into: a newer minor version needs to be looked at first.
        "deepspeed": ["torch>=2.9", "numpy", "deepspeed>=0.18.9"],
        "megatron": ["torch>=2.9", "numpy", "megatron-core>=0.16.1,<0.20"],
        "dev": [
            "accelerate>=1.15", "hypothesis>=6.100", "kubernetes-validate>=1.37", "mypy>=1.10", "pytest>=8",
            "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.6", "transformers>=5.24",
        ],
    },
    entry_points={"console_scripts": ["fftrain = ff_core.launch.cli:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
