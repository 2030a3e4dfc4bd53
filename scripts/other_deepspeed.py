#!/usr/bin/env python3
"""Installs another DeepSpeed beside the environment, for `make test DEEPSPEED=0.18.9`.

    python scripts/other_deepspeed.py 0.18.9 .venv-deepspeed0.18.9/site-packages

The folder goes in front of the environment's packages, in PYTHONPATH. Its operators are compiled, in minutes, from its
own sources. They lie where TORCH_EXTENSIONS_DIR says: not where those of the environment's DeepSpeed are, or each would
compile them anew. The folder must be called site-packages: what lies there is a library, and no part of a user's
script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from other_megatron import asked
from setup_env import Meanwhile, compile_operators


def main() -> int:
    """Returns 0; 1 with pip's own message if it could not install, or with the compiler's."""
    arguments = asked("DeepSpeed", __doc__)
    os.environ.pop("PYTHONPATH", None)  # of `make`: it names the folder, where nothing is yet
    try:
        install(arguments.version, arguments.folder)
        os.environ["PYTHONPATH"] = str(arguments.folder)
        with Meanwhile() as meanwhile:
            compile_operators(Path(sys.executable), meanwhile)
            meanwhile.wait_for_all()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(arguments.folder, ignore_errors=True)  # half a folder would look like a whole one
        print(f"other_deepspeed: failed: {str(error.cmd)[:300]}", file=sys.stderr)
        return 1
    print(f"DeepSpeed {arguments.version} is in {arguments.folder}")
    return 0


def install(version: str, folder: Path) -> None:
    """What it needs is there: the environment's DeepSpeed needs the same. Raises CalledProcessError."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(folder), f"deepspeed=={version}"]
    subprocess.run(pip, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    mend(folder / "deepspeed" / "runtime" / "zero" / "stage_1_and_2.py")


def mend(file: Path) -> None:
    """DeepSpeed 0.18.9 cannot train with ZeRO 1 or 2 on a CPU: "Output 0 of SplitBackward0 is a view and is being
    modified inplace". This is its own correction (pull request 7948), which 0.19 has."""
    made = "bit16_groups_flat.append(flattened_buffer"
    file.write_text(file.read_text().replace(f"{made})", f"{made}.detach())"))


if __name__ == "__main__":
    sys.exit(main())
