"""Which modules may import which, in the rooms of contract, agent and controller: type checking's imports count."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("contract", "agent", "controller")
#: What a contract may be written in. torch: only the type of a tensor, in `adapter`.
OF_CONTRACT = {"msgpack", "grpc", "torch"}
#: Other processes and what is above them.
FORBIDDEN = {
    "contract": set(),
    "agent": {"controller", "worker", "launch", "comm", "state"},
    "controller": {"agent", "worker", "launch", "comm", "state"},
}


def modules(room: str) -> dict[str, Path]:
    return {f"ff_core.{room}.{path.stem}": path for path in sorted((ROOT / "ff_core" / room).glob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Names of modules, and of what is taken out of them: "a.b" and "a.b.c" for `from a.b import c`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_of_modules(room: str) -> None:
    here = modules(room)
    graph = {name: {other for other in imported(path) if other in here} for name, path in here.items()}
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    for path in modules(room).values():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "ff_core":
                fine = parts[0] in sys.stdlib_module_names or parts[0] in OF_CONTRACT
                assert room != "contract" or fine, f"{path.name}: {name}"
                assert parts[0] not in ("ff_deepspeed", "ff_megatron"), f"{path.name}: {name}"
            elif len(parts) > 1 and room == "contract":
                assert parts[1] in ("contract", "errors", "units"), f"{path.name}: {name}"
            elif len(parts) > 1:
                assert parts[1] not in FORBIDDEN[room], f"{path.name}: {name}"
