"""What pip has put anywhere is a library's; what a user works on is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ff_core.state.installed import is_library

_RECORD = "thing/__init__.py,,\nthing/inner/part.py,,\nalone.py,,\nfast.cpython-311-x86_64-linux-gnu.so,,\n../bin/x,,\n"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """As `pip install --target` leaves it, with a module of the user's own beside it."""
    about = tmp_path / "thing-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (about / "RECORD").write_text(_RECORD)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "module", "library"),
    [
        ("thing/__init__.py", "thing", True),
        ("thing/inner/part.py", "thing.inner.part", True),
        ("thing/inner/part.py", None, False),  # nothing says that its package is "thing"
        ("alone.py", "alone", True),
        ("fast.cpython-311-x86_64-linux-gnu.so", "fast", True),
        ("train.py", "__main__", False),
        ("mine/__init__.py", "mine", False),
        ("mine/thing/part.py", "mine.thing.part", False),
    ],
)
def test_beside_its_dist_info(target: Path, file: str, module: str | None, library: bool) -> None:
    assert is_library(str(target / file), module) is library


def test_a_project_that_is_installed_in_place_is_the_users(tmp_path: Path) -> None:
    about = tmp_path / "thing.egg-info"
    about.mkdir()
    (about / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (about / "SOURCES.txt").write_text("thing/__init__.py\n")
    (about / "top_level.txt").write_text("thing\n")
    assert not is_library(str(tmp_path / "thing" / "__init__.py"), "thing")


def test_standard_library_and_site_packages() -> None:
    assert is_library(subprocess.__file__, "subprocess")
    assert is_library(str(torch.__file__), "torch")
    assert not is_library(__file__, __name__)


def test_a_linked_file_of_site_packages(tmp_path: Path) -> None:
    """As package managers that share files between environments make them."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "part.py").touch()
    place = tmp_path / "site-packages" / "thing"
    place.mkdir(parents=True)
    (place / "part.py").symlink_to(tmp_path / "cache" / "part.py")
    assert is_library(str(place / "part.py"), "thing.part")


def test_what_pip_really_leaves(tmp_path: Path) -> None:
    """A wheel that pip installs with --target."""
    source = tmp_path / "source"
    (source / "really").mkdir(parents=True)
    (source / "really" / "__init__.py").touch()
    (source / "setup.py").write_text("from setuptools import setup\nsetup(name='really', packages=['really'])\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "target"), str(source)], check=True)
    assert is_library(str(tmp_path / "target" / "really" / "__init__.py"), "really")
    assert not is_library(str(source / "really" / "__init__.py"), "really")
