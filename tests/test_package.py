"""The package as a whole: what importing it costs, and its public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ff_core


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_importing_costs_nothing() -> None:
    done = run(
        "import sys, ff_core, ff_core.errors, ff_core.config.schema\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'megatron', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_ff_core_imports_no_framework() -> None:
    done = run(
        "import importlib, pkgutil, sys, ff_core\n"
        "for module in pkgutil.walk_packages(ff_core.__path__, 'ff_core.'):\n"
        "    if not module.name.endswith(('_main', '__main__', '_ff_engine')):\n"  # the engine is no module
        "        importlib.import_module(module.name)\n"
        "frameworks = {'deepspeed', 'megatron', 'ff_deepspeed', 'ff_megatron'} & set(sys.modules)\n"
        "assert not frameworks, frameworks"
    )
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    functions = {"build_info", "is_fftrain_launched", "is_replacement", "register_state"}
    assert set(ff_core.__all__) == {"FailoverConfig", "__version__", *functions}
    for name in ff_core.__all__:
        assert getattr(ff_core, name)
    assert sorted(ff_core.__all__) == dir(ff_core)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ff_core.nothing  # noqa: B018


def test_not_a_replacement_outside_a_job() -> None:
    assert ff_core.is_replacement() is False and ff_core.is_fftrain_launched() is False


def test_build_info_describes_the_engine() -> None:
    info = ff_core.build_info()
    assert info["compiler"]
    assert {"cuda", "transports"} <= info.keys()


def test_adapters_import_no_framework_by_themselves() -> None:
    done = run(
        "import sys, ff_megatron\n"
        "heavy = {'torch', 'megatron', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr
