"""`fftrain patch`: has a framework call FFTrainer's hooks itself, for jobs without the launcher's import hooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ff_core.errors import FailoverError
from ff_core.patching import tree
from ff_core.patching.patchfile import Patch, PatchError, load

NAMES = {"deepspeed": "DeepSpeed", "megatron": "Megatron-LM"}
_DESCRIPTION = """\
Insert a few lines into DeepSpeed or Megatron-LM that call FFTrainer, for jobs that `fftrain run --no-import-hooks`
starts. A patch fits the very version that it was made for, by the hashes of its files, and is taken back to the byte.
Either all of its files are changed or none."""
_EPILOG = "Exit code: 0; 1 for --check of a tree that is half applied; 2 if no patch fits or a file cannot be changed."


def main(argv: Sequence[str]) -> int:
    """The sub-command. Returns its exit code, see the end of its --help."""
    parser = argparse.ArgumentParser(prog="fftrain patch", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("framework", choices=sorted(NAMES))
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a checkout, the installed package's directory, or the one around it"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="only say whether it is applied, or could be")
    instead.add_argument("--revert", action="store_true", help="take the patch back")
    arguments = parser.parse_args(argv)
    try:
        fit = tree.find(arguments.path, patches(arguments.framework))
        if arguments.check:
            return _check(fit)
        _change(fit, arguments.revert)
    except FailoverError as error:
        print(f"fftrain patch: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fftrain patch: error: {error.filename}: {error.strerror}; nothing was changed", file=sys.stderr)
        return 2
    return 0


def patches(framework: str) -> list[Patch]:
    """All patches for `framework` that came with this package. Raises PatchError."""
    folder = directory()
    found = [load(file) for file in folder.glob("*.patch")]
    matching = sorted((patch for patch in found if patch.framework == framework), key=lambda patch: patch.version)
    if not matching:
        raise PatchError(f"{folder}: there are no patches for {framework}: this installation is not complete")
    return matching


def directory() -> Path:
    """Where the patch files are: ff_core/patches in an installed package, patches/ in a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "patches"
    return installed if installed.is_dir() else package.parent / "patches"


def _name(fit: tree.Fit) -> str:
    return f"{fit.root}: patch for {NAMES[fit.patch.framework]} {fit.patch.version}"


def _check(fit: tree.Fit) -> int:
    if fit.state is tree.State.HALF:
        print(f"{_name(fit)}: half applied: an earlier call was interrupted. Apply or revert it")
        return 1
    print(f"{_name(fit)}: {fit.state.value}")
    return 0


def _change(fit: tree.Fit, back: bool) -> None:
    files = f"{len(fit.patch.files)} file{'s' if len(fit.patch.files) > 1 else ''}"
    if back:
        if fit.state is tree.State.APPLICABLE:
            print(f"{_name(fit)}: is not applied; nothing was changed")
            return
        tree.revert(fit)
        print(f"{_name(fit)}: reverted; {files} as before, to the byte")
        return
    if fit.state is tree.State.APPLIED:
        print(f"{_name(fit)}: is applied already; nothing was changed")
        return
    tree.apply(fit)
    print(f"{_name(fit)}: applied; {fit.patch.lines} lines inserted into {files}")
