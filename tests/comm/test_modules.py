"""The modules of ff_core.comm import each other one way only; imports for type checking count."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ff_core.comm

PACKAGE = "ff_core.comm"


def imports(path: Path) -> set[str]:
    """The sibling modules that `path` names, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1:
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
            elif module == PACKAGE:
                found |= {alias.name for alias in node.names}
            elif module.startswith(f"{PACKAGE}."):
                found.add(module.split(".")[2])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[2] for name in node.names if name.name.startswith(f"{PACKAGE}.")}
    return found


def test_no_circle_of_modules() -> None:
    files = list(Path(ff_core.comm.__path__[0]).glob("*.py"))
    modules = {path.stem: imports(path) for path in files}
    assert modules["group"] >= {"era", "generation"}, "the test sees imports of both kinds"
    TopologicalSorter(modules).prepare()  # raises CycleError, which names the circle
