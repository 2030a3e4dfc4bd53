"""`fftrain patch` as a person meets it, with the patches that come with the package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ff_core.launch.cli import main
from ff_core.patching import command, tree
from ff_core.patching.patchfile import load

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.find_spec("deepspeed")
assert SPEC is not None and SPEC.origin is not None
INSTALLED = Path(SPEC.origin).parent
NAMES = ("deepspeed/__init__.py", "deepspeed/runtime/config.py")

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def fftrain(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The files of the installed DeepSpeed that the patch is about."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(INSTALLED.parent / name, tmp_path / name)
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_check_apply_revert(fftrain: Run, site: Path) -> None:
    before = contents(site)
    assert before.keys() == set(NAMES)
    what = f"{site}: patch for DeepSpeed 0.19.8: "
    assert fftrain("patch", "deepspeed", "--check", site) == (0, f"{what}applicable\n", "")
    code, out, _ = fftrain("patch", "deepspeed", site, "--revert")
    assert (code, out) == (0, f"{what}is not applied; nothing was changed\n")
    assert contents(site) == before
    code, out, _ = fftrain("patch", "deepspeed", site / "deepspeed")
    assert code == 0 and out.startswith(f"{what}applied; ") and out.endswith("lines inserted into 2 files\n")
    patched = contents(site)
    assert all(patched[name] != before[name] for name in NAMES) and len(patched) == len(NAMES)
    assert fftrain("patch", "deepspeed", site, "--check") == (0, f"{what}applied\n", "")
    assert fftrain("patch", "deepspeed", site) == (0, f"{what}is applied already; nothing was changed\n", "")
    assert contents(site) == patched
    code, out, _ = fftrain("patch", "deepspeed", site, "--revert")
    assert (code, out) == (0, f"{what}reverted; 2 files as before, to the byte\n")
    assert contents(site) == before


def test_half_applied(fftrain: Run, site: Path) -> None:
    before = contents(site)
    tree.apply(tree.find(site, command.patches("deepspeed")))
    (site / NAMES[1]).write_bytes(before[NAMES[1]])
    code, out, _ = fftrain("patch", "deepspeed", site, "--check")
    assert code == 1 and "half applied" in out
    assert fftrain("patch", "deepspeed", site, "--revert")[0] == 0
    assert contents(site) == before


def test_another_version(fftrain: Run, site: Path) -> None:
    with (site / NAMES[1]).open("ab") as file:
        file.write(b"# changed\n")
    before = contents(site)
    for option in ((), ("--check",), ("--revert",)):
        code, out, err = fftrain("patch", "deepspeed", site, *option)
        assert code == 2 and out == "" and err.startswith(f"fftrain patch: error: {site / NAMES[1]} has contents ")
        assert err.endswith("versions that work: 0.19.8\n")
    assert contents(site) == before


def test_mistakes(fftrain: Run, tmp_path: Path) -> None:
    for argv, said in (
        (("deepspeed", tmp_path / "gone"), "no such directory"),
        (("deepspeed", tmp_path), "there is no deepspeed in it"),
        (("megatron", tmp_path), "there is no megatron/training in it"),
    ):
        code, out, err = fftrain("patch", *argv)
        assert code == 2 and out == "" and said in err and err.startswith("fftrain patch: error: ")
    for words in ((), ("deepspeed",), ("torch", tmp_path), ("deepspeed", tmp_path, "--check", "--revert")):
        code, _, err = fftrain("patch", *words)
        assert code == 2 and "usage: fftrain patch" in err
    code, out, _ = fftrain("patch", "--help")
    assert code == 0 and all(word in out for word in ("--check", "--revert", "PATH", "Exit code"))


def test_a_file_that_cannot_be_written(fftrain: Run, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(site)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", "the file")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = fftrain("patch", "deepspeed", site)
    assert (code, out) == (2, "")
    assert err == "fftrain patch: error: the file: No space left on device; nothing was changed\n"
    assert contents(site) == before


def test_the_shipped_patches_are_named_after_what_they_are_for() -> None:
    files = sorted((ROOT / "patches").glob("*.patch"))
    wanted = {"deepspeed-0.19.8.patch", "megatron-lm-core_v0.16.1.patch", "megatron-lm-core_v0.19.0.patch"}
    assert wanted <= {file.name for file in files}
    for file in files:
        patch = load(file)
        assert file.name.endswith(f"-{patch.version}.patch") and patch.framework in command.NAMES
        assert patch.lines <= 12
        text = file.read_text()
        # Nothing of the framework's is in our repository: every line of a hunk is one of ours.
        start = text.index("--- ")
        assert all(line.startswith(("--- a/", "+++ b/", "@@ -", "+")) for line in text[start:].splitlines())


def test_make_patch_makes_the_shipped_one(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site / "deepspeed", site / "released/deepspeed")
    tree.apply(tree.find(site, command.patches("deepspeed")))
    script = str(ROOT / "scripts/make_patch.py")
    make = [sys.executable, script, "deepspeed", "0.19.8", str(site / "released"), str(site)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for names, code in ((NAMES, 0), ((NAMES[0], "deepspeed/nothing.py"), 2)):
        done = subprocess.run(
            [*make, *names, "--out", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    shipped = (ROOT / "patches/deepspeed-0.19.8.patch").read_bytes()
    assert (tmp_path / "deepspeed-0.19.8.patch").read_bytes() == shipped


def test_an_installed_package_has_the_patches(tmp_path: Path) -> None:
    """What setup.py builds, without the checkout around it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d"]
    done = subprocess.run(
        [*build, str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from ff_core.patching import command\n"
        "print(command.directory()); command.patches('deepspeed'); command.patches('megatron')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'site/ff_core/patches'}\n"
    assert {file.name for file in (ROOT / "patches").iterdir()} == {
        file.name for file in (tmp_path / "site/ff_core/patches").iterdir()
    }
