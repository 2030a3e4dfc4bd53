"""Patches as data: what is inserted can be written, read, applied and taken back to the byte; anything else is an
error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ff_core.patching.patchfile import FilePatch, Insertion, Patch, PatchError, difference, digest, load, read, write

LINE = st.sampled_from([b"", b"a", b"b", b"+a", b"--- a/x", b"+++ b/x", b"@@ -1,0 +2,1 @@", b"\r", b"\xff\x00", b" "])


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Contents before and after an insertion; the last line of the file need not end."""
    old = [line + b"\n" for line in draw(st.lists(LINE, max_size=8))]
    new = []
    places = draw(st.lists(st.lists(LINE, max_size=3), min_size=len(old) + 1, max_size=len(old) + 1))
    for place, lines in enumerate(places):
        new += [line + b"\n" for line in lines]
        new += old[place : place + 1]
    if new == old:
        new.append(b"new\n")
    tail = draw(st.sampled_from([b"", b"no newline"]))
    return b"".join(old) + tail, b"".join(new) + tail


CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


@CALM
@given(st.lists(changes(), min_size=1, max_size=3))
def test_there_and_back(contents: list[tuple[bytes, bytes]]) -> None:
    files = tuple(difference(f"dir/file{n}", before, after) for n, (before, after) in enumerate(contents))
    patch = Patch("deepspeed", "1.2.3", files)
    assert read(write(patch, "a note\nfor: readers"), "p") == patch
    for file, (before, after) in zip(patch.files, contents, strict=True):
        assert file.apply(before) == after
        assert file.revert(after) == before


@CALM
@given(changes(), st.binary(min_size=1, max_size=3))
def test_other_contents_are_refused(contents: tuple[bytes, bytes], more: bytes) -> None:
    before, after = contents
    file = difference("f", before, after)
    for wrong in {before + more, more + before, after} - {before}:
        with pytest.raises(PatchError, match=r"^f: sha256 [0-9a-f]{64}; allowed: "):
            file.apply(wrong)
    for wrong in {after + more, more + after, before} - {after}:
        with pytest.raises(PatchError, match=r"^f: sha256"):
            file.revert(wrong)


def test_only_the_hash_of_the_result_makes_it_right() -> None:
    moved = FilePatch("f", digest(b"a\nb\n"), digest(b"a\nx\nb\n"), (Insertion(0, (b"x\n",)),))
    with pytest.raises(PatchError, match=r"^f: sha256"):
        moved.apply(b"a\nb\n")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"a\nb\n", b"a\nc\n", "line 2 is changed or gone"),
        (b"a\nb\n", b"a\n", "line 2 is changed or gone"),
        (b"a", b"a\nb\n", "line 1 is changed"),
        (b"a\n", b"a\nb", "does not end"),
        (b"a\n", b"a\n", "nothing is inserted"),
    ],
)
def test_more_than_inserted_lines_is_refused(before: bytes, after: bytes, said: str) -> None:
    with pytest.raises(PatchError, match=said):
        difference("f", before, after)


GOOD = write(Patch("deepspeed", "1", (difference("d/f", b"a\n", b"b\na\n"),)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"framework: deepspeed\n", b"", "framework"),
        (b"version: 1\n", b"", "version"),
        (b"before ", b"befor ", "pins"),
        (b" d/f\n", b" d/g\n", "pins"),
        (b"--- a/d/f\n", b"--- a//etc/f\n", "plain path"),
        (b"--- a/d/f\n", b"--- a/../f\n", "plain path"),
        (b"--- a/d/f\n", b"--- d/f\n", "--- a/PATH"),
        (b"+++ b/d/f", b"+++ b/d/g", r"\+\+\+ b/d/f"),
        (b"@@ -0,0 +1,1 @@", b"@@ -1,1 +1,2 @@", "COUNT"),
        (b"@@ -0,0 +1,1 @@", b"@@ -0,0 +1,2 @@", "2 lines"),
        (b"\n+b\n", b"\n-b\n", "1 lines"),
        (b"\n+b\n", b"\n+b\n a\n", "--- a/PATH"),
        (b"\n+b\n", b"\n+b\n@@ -0,0 +1,1 @@\n+b\n", "order"),
    ],
)
def test_damaged_patches_are_refused(old: bytes, new: bytes, said: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(PatchError, match=said):
        read(GOOD.replace(old, new), "p")


def test_a_missing_patch_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"gone\.patch: No such file"):
        load(tmp_path / "gone.patch")


@settings(CALM, max_examples=12)
@given(changes())
@pytest.mark.parametrize("command", [["git", "apply", "--unidiff-zero"], ["patch", "-p1", "--binary", "-s"]])
def test_other_tools_take_it(
    command: list[str], tmp_path_factory: pytest.TempPathFactory, contents: tuple[bytes, bytes]
) -> None:
    before, after = contents
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    # git takes a lone carriage return, an empty file and a last line without end for something special
    before, after = (text.replace(b"\r", b"").replace(b"no newline", b"").replace(b"\x00", b"") for text in contents)
    if not before:
        return
    tree = tmp_path_factory.mktemp("tree")
    (tree / "f").write_bytes(before)
    (tree / "p").write_bytes(write(Patch("deepspeed", "1", (difference("f", before, after),))))
    words = [*command, "p"] if command[0] == "git" else [*command, "-i", "p"]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tree / "f").read_bytes() == after
