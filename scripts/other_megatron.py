#!/usr/bin/env python3
"""Installs another megatron-core beside the environment, for `make test MEGATRON=0.19.2`.

    python scripts/other_megatron.py 0.19.2 .venv-megatron0.19.2/site-packages

The folder goes in front of the environment's packages, in PYTHONPATH. megatron-core 0.17 and newer ask for Python 3.12.
Its sources run on older ones as well, so what is installed there is what pip would install on 3.12; its compiled
helpers for data sets are for 3.12 only, and the tests need none. Newer versions import triton, of which torch for CPUs
brings none. The folder must be called site-packages: what lies there is a library, and no part of a user's script.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON = "3.12"
LIBRARIES = "site-packages"


def main() -> int:
    """Returns 0; 1 with pip's own message if it could not install."""
    arguments = asked("megatron-core", __doc__)
    for command in commands(arguments.version, arguments.folder, importlib.util.find_spec("triton") is None):
        code = subprocess.run(command, check=False).returncode
        if code:
            shutil.rmtree(arguments.folder, ignore_errors=True)  # half a folder would look like a whole one
            return code
    print(f"megatron-core {arguments.version} is in {arguments.folder}")
    return 0


def asked(package: str, doc: str | None) -> argparse.Namespace:
    """The command line: version and folder, which is gone afterwards. doc: of the script."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("version", help=f"of {package}")
    parser.add_argument("folder", type=Path, help=f"where to; made anew; its name is {LIBRARIES}")
    arguments = parser.parse_args()
    if arguments.folder.name != LIBRARIES:
        parser.error(f"argument folder: {arguments.folder}; allowed: a folder called {LIBRARIES}")
    shutil.rmtree(arguments.folder, ignore_errors=True)
    return arguments


def commands(version: str, folder: Path, triton: bool) -> list[list[str]]:
    """Command lines of pip. triton: it is needed, too."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    pip += ["--no-deps", "--target", str(folder), "--ignore-requires-python"]
    newer = PYTHON if sys.version_info < (3, 12) else ".".join(map(str, sys.version_info[:2]))
    found = [[*pip, "--python-version", newer, "--only-binary", ":all:", f"megatron-core=={version}"]]
    return [*found, [*pip, "triton"]] if triton else found


if __name__ == "__main__":
    sys.exit(main())
