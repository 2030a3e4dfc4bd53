"""Patches and trees on disk: all files or none, byte for byte, and a reason whenever nothing is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ff_core.patching import tree
from ff_core.patching.patchfile import Patch, PatchError, difference
from ff_core.patching.tree import State

BEFORE = {"deepspeed/__init__.py": b"import os\n", "deepspeed/runtime/config.py": b"a = 1\nb = 2\n"}
AFTER = {"deepspeed/__init__.py": b"import os\nnew()\n", "deepspeed/runtime/config.py": b"a = 1\nx = 3\nb = 2\n"}
PATCH = Patch("deepspeed", "0.1", tuple(difference(name, BEFORE[name], AFTER[name]) for name in BEFORE))
OLDER = Patch("deepspeed", "0.0", tuple(difference(name, b"# old\n" + BEFORE[name], b"# old\nx\n" + BEFORE[name])
                                        for name in BEFORE))  # fmt: skip
PATCHES = [OLDER, PATCH]


def make(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file below root, leftovers of an interrupted write too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_there_and_back(tmp_path: Path) -> None:
    make(tmp_path, BEFORE)
    (tmp_path / "deepspeed/__init__.py").chmod(0o640)
    fit = tree.find(tmp_path, PATCHES)
    assert (fit.patch.version, fit.state, fit.root) == ("0.1", State.APPLICABLE, tmp_path)
    tree.apply(fit)
    assert contents(tmp_path) == AFTER
    assert tree.find(tmp_path, PATCHES).state is State.APPLIED
    tree.apply(tree.find(tmp_path, PATCHES))
    assert contents(tmp_path) == AFTER
    tree.revert(tree.find(tmp_path, PATCHES))
    assert contents(tmp_path) == BEFORE
    tree.revert(tree.find(tmp_path, PATCHES))
    assert contents(tmp_path) == BEFORE
    assert (tmp_path / "deepspeed/__init__.py").stat().st_mode & 0o777 == 0o640


def test_each_version_gets_its_own_patch(tmp_path: Path) -> None:
    old = {name: b"# old\n" + content for name, content in BEFORE.items()}
    fit = tree.find(make(tmp_path, old), PATCHES)
    assert fit.patch.version == "0.0"
    tree.apply(fit)
    tree.revert(tree.find(tmp_path, PATCHES))
    assert contents(tmp_path) == old


@pytest.mark.parametrize("place", [".", "deepspeed", "link"])
def test_a_checkout_a_package_or_what_is_around_it(tmp_path: Path, place: str) -> None:
    make(tmp_path / "tree", BEFORE)
    (tmp_path / "tree/link").symlink_to("deepspeed")
    assert tree.find(tmp_path / "tree" / place, PATCHES).root == tmp_path / "tree"


def test_places_without_the_framework(tmp_path: Path) -> None:
    make(tmp_path, {"file": b"", "megatron/core/__init__.py": b""})
    cases = (("gone", "no such directory"), ("file", "not a directory"), ("megatron", "there is no deepspeed"))
    for path, said in cases:
        with pytest.raises(PatchError, match=said):
            tree.find(tmp_path / path, PATCHES)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("deepspeed/__init__.py", b"something else\n", "no patch is made for"),
        ("deepspeed/runtime/config.py", b"a = 1\r\nb = 2\r\n", "CRLF"),
        ("deepspeed/runtime/config.py", AFTER["deepspeed/runtime/config.py"] + b"more\n", "no patch is made for"),
        ("deepspeed/runtime/config.py", None, "does not exist"),
    ],
)
def test_other_contents_are_refused_with_file_and_versions(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    make(tmp_path, BEFORE)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    found = contents(tmp_path)
    with pytest.raises(PatchError) as error:
        tree.find(tmp_path, PATCHES)
    text = str(error.value)
    assert str(tmp_path / name) in text and said in text and "versions that work: 0.0, 0.1" in text
    assert "other files are those of 0.1" in text
    assert contents(tmp_path) == found


def test_a_link_to_a_file_is_not_followed(tmp_path: Path) -> None:
    """It may lead into a cache that other installations share."""
    make(tmp_path / "cache", BEFORE)
    make(tmp_path / "site", BEFORE)
    (tmp_path / "site/deepspeed/__init__.py").unlink()
    (tmp_path / "site/deepspeed/__init__.py").symlink_to(tmp_path / "cache/deepspeed/__init__.py")
    with pytest.raises(PatchError, match="is a link to"):
        tree.find(tmp_path / "site", PATCHES)
    assert contents(tmp_path / "cache") == BEFORE


def test_a_file_with_two_names_keeps_the_other_one(tmp_path: Path) -> None:
    """Installers make hard links into their caches."""
    make(tmp_path, BEFORE)
    os.link(tmp_path / "deepspeed/__init__.py", tmp_path / "cached")
    tree.apply(tree.find(tmp_path, PATCHES))
    assert (tmp_path / "cached").read_bytes() == BEFORE["deepspeed/__init__.py"]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("goal", ["before", "after"])
def test_both_ways_out_of_half_a_patch(tmp_path: Path, which: int, goal: str) -> None:
    names = list(BEFORE)
    make(tmp_path, {**BEFORE, names[which]: AFTER[names[which]]})
    fit = tree.find(tmp_path, PATCHES)
    assert fit.state is State.HALF
    (tree.apply if goal == "after" else tree.revert)(fit)
    assert contents(tmp_path) == (AFTER if goal == "after" else BEFORE)


FILES = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.binary(max_size=40), min_size=1)
FAILURES: dict[str, type[BaseException]] = {"OSError": OSError, "KeyboardInterrupt": KeyboardInterrupt}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.integers(0, 20), st.sampled_from(sorted(FAILURES)))
def test_a_failure_at_any_point_leaves_every_file_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], at: int, kind: str
) -> None:
    """Whatever system call fails (the last ones are those that put things back, and must not)."""
    root = make(tmp_path_factory.mktemp("tree"), files)
    wanted = {root / name: content + b"more" for name, content in files.items()}
    calls = 0
    real = {name: getattr(owner, name) for owner, name in ((os, "fsync"), (Path, "replace"), (tree.shutil, "copymode"))}

    def failing(name: str):
        def call(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise FAILURES[kind](28, "No space left on device")
            return real[name](*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing("fsync"))
        patch.setattr(Path, "replace", failing("replace"))
        patch.setattr(tree.shutil, "copymode", failing("copymode"))
        try:
            tree.replace_all(wanted)
            failed = False
        except (OSError, KeyboardInterrupt):
            failed = True
    assert failed == (at < 5 * len(files))
    expected = files if failed else {name: content + b"more" for name, content in files.items()}
    assert contents(root) == expected
