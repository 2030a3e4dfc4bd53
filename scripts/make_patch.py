"""Makes a patch of `fftrain patch` from two trees of a framework: as released, and with lines inserted.

    python scripts/make_patch.py deepspeed 0.19.8 released/ changed/ deepspeed/__init__.py deepspeed/runtime/config.py

The patch goes to patches/. Its files are named one by one: what a patch changes should be few, and known.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ff_core.patching.command import NAMES
from ff_core.patching.patchfile import Patch, PatchError, difference, write

ROOT = Path(__file__).resolve().parents[1]
FILES = {"deepspeed": "deepspeed-{}.patch", "megatron": "megatron-lm-{}.patch"}


def main() -> int:
    """Returns 0, or 2 with a message if a file has more than inserted lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("framework", choices=sorted(NAMES))
    parser.add_argument("version", help="as the framework names it: a release, or a tag")
    parser.add_argument("released", type=Path)
    parser.add_argument("changed", type=Path)
    parser.add_argument("files", nargs="+", metavar="FILE", help="path below both trees")
    parser.add_argument("--out", type=Path, default=ROOT / "patches")
    arguments = parser.parse_args()
    try:
        files = tuple(
            difference(name, (arguments.released / name).read_bytes(), (arguments.changed / name).read_bytes())
            for name in arguments.files
        )
    except (PatchError, OSError) as error:
        print(f"make_patch: error: {error}", file=sys.stderr)
        return 2
    patch = Patch(arguments.framework, arguments.version, files)
    note = (
        f"{NAMES[patch.framework]} {patch.version} calls FFTrainer itself: see `fftrain patch --help`.\n"
        "Inserted lines only, without context; files are pinned by their SHA-256."
    )
    path = arguments.out / FILES[patch.framework].format(patch.version)
    path.write_bytes(write(patch, note))
    print(f"{path}: {patch.lines} lines into {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
