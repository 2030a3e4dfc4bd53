"""Kept objects: used again only if nothing that went into them has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ff_core.csrc import build
from ff_core.csrc.object_cache import ObjectCache


class Project:
    """A source with a header of a header, and a compiler that notes what it compiles instead of compiling."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.source = directory / "main.cpp"
        self.header = directory / "deep.h"
        self.header.write_text("// nothing\n")
        (directory / "near.h").write_text('#include "deep.h"\n')
        self.source.write_text('#include "near.h"\n#include "base/error.h"\n')
        self.compiler = directory / "compiler"
        self.set_version("1")
        monkeypatch.setenv("CXX", str(self.compiler))
        self.cache = ObjectCache(directory / "objects")

    def set_version(self, version: str) -> None:
        self.compiler.write_text(
            f"#!/bin/sh\n[ $1 = --version ] && echo {version} && exit\n"
            f"echo x >> {self.directory}/compiled\n"
            'for out; do :; done; echo "object of $*" > "$out"\n'
        )
        self.compiler.chmod(0o755)

    def compile(self, sanitize: str | None = None) -> str:
        """Returns the object's content."""
        out = self.directory / "out"
        out.mkdir(exist_ok=True)
        (made,) = build.compile_objects([self.source], out, sanitize, self.cache)
        content = made.read_text()
        made.unlink()
        return content

    @property
    def compiled(self) -> int:
        """How many files were, so far."""
        log = self.directory / "compiled"
        return len(log.read_text().split()) if log.exists() else 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


def test_the_same_is_compiled_once(project: Project) -> None:
    first = project.compile()
    assert project.compile() == first and project.compiled == 1
    assert project.compile("thread") != first and project.compiled == 2
    assert project.compile() == first and project.compiled == 2


@pytest.mark.parametrize("name", ["main.cpp", "near.h", "deep.h"])
def test_a_changed_text_is_compiled_again(project: Project, name: str) -> None:
    project.compile()
    with (project.directory / name).open("a") as file:
        file.write("// changed\n")
    project.compile()
    assert project.compiled == 2


def test_another_version_of_the_compiler_compiles_again(project: Project) -> None:
    project.compile()
    project.set_version("2")
    project.compile()
    assert project.compiled == 2


def test_includes_are_found_beside_the_file_and_from_the_root(project: Project) -> None:
    found = {path.name for path in build.included(project.source)}
    assert found == {"near.h", "deep.h", "error.h", "ff_engine.h"}


def test_every_include_of_the_engine_is_found() -> None:
    """An include that is missed would leave stale objects."""
    for file in build.sources():
        known = {path.relative_to(build.SOURCE_DIR).as_posix() for path in build.included(file)}
        named = build.INCLUDE.findall(file.read_text())
        assert set(named) - known <= {build.KERNEL_IMAGE}, file


def test_a_failed_compile_leaves_nothing(project: Project) -> None:
    project.compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\nexit 1\n")
    with pytest.raises(build.BuildError):
        project.compile()
    project.set_version("1")
    project.compile()
    assert project.compiled == 1


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "kept", limit_bytes=25)
    made, out = tmp_path / "made", tmp_path / "out"
    made.write_bytes(bytes(10))
    for age, name in enumerate(("a", "b", "c")):
        cache.store(name, made)
        os.utime(tmp_path / "kept" / name, (1000 + age, 1000 + age))
    assert cache.fetch("a", out)  # used just now
    cache.prune()
    assert [cache.fetch(name, out) for name in ("a", "b", "c")] == [True, False, True]


def test_an_entry_that_was_never_made(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "absent")
    assert not cache.fetch("a", tmp_path / "out")
    cache.prune()
