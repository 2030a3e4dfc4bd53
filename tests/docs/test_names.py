"""Docstrings and comments name modules and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ff_core", "ff_deepspeed", "ff_megatron")
#: `ff_core.comm.host.CommHost`, and a path from the root on that ends a word.
DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`")
FILE = re.compile(rf"(?<![\w/.])((?:{'|'.join(PACKAGES)}|scripts|tests|docs)/[\w/]+\.(?:py|md|h|cpp))\b")


def there(dotted: str) -> bool:
    """Whether a module, or a name that a module's text has, is called so."""
    parts = dotted.split(".")
    path = ROOT
    for number, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
            continue
        module = path / f"{part}.py"
        text = (module if module.is_file() else path / "__init__.py").read_text()
        names = parts[number + 1 :] if module.is_file() else parts[number:]
        return all(re.search(rf"\b{name}\b", text) for name in names)
    return True


@pytest.mark.parametrize("folder", [*PACKAGES, "scripts", "docs"])
def test_what_is_named_exists(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".h", ".cpp")]
    wrong = []
    for path in files:
        text = path.read_text()
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in DOTTED.findall(text) if not there(name)]
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in FILE.findall(text) if not (ROOT / name).is_file()]
    assert files and wrong == []


def test_what_is_not_there_is_seen() -> None:
    assert there("ff_core.comm.host.CommHost") and there("ff_core.errors") and there("ff_core.register_state")
    assert not there("ff_core.comm.host.Nobody") and not there("ff_core.runtime")
