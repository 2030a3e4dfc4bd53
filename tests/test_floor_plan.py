"""The floor plan: which folder may import which, that nothing goes in circles, and who starts without torch.

Every import counts: at the top of a module, within a function, and under `TYPE_CHECKING`. A type that a module names is
something it depends on.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Floors, lowest first. A room may import rooms of lower floors; rooms of one floor know nothing of each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("ff_core.errors", "ff_core.units", "ff_core.csrc"),
    ("ff_core.contract", "ff_core.config", "ff_core.patching"),
    ("ff_core.copy", "ff_core.observe"),
    ("ff_core.comm", "ff_core.state"),
    ("ff_core.worker", "ff_core.agent", "ff_core.controller"),
    ("ff_core.launch", "ff_core"),
    ("ff_deepspeed", "ff_megatron"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITH_TORCH = ("ff_core.comm", "ff_core.state", "ff_core.worker", "ff_deepspeed", "ff_megatron")
#: The package's own page: public names, loaded when they are first used. Importing any module imports it.
FACADE = "ff_core"


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the product."""
    found = {}
    for package in ("ff_core", "ff_deepspeed", "ff_megatron"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that `node`, in `module`'s text, takes names from."""
    if not node.level:
        return str(node.module)
    is_package = modules()[module].name == "__init__.py"
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The product's modules that `module` imports, wherever in its text."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            for alias in node.names if source in known else []:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in known else source)
    return frozenset(found - {module})


def room(module: str) -> str:
    """The folder that a module belongs to; a module of ff_core's root is a room of its own."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "ff_core" else parts[0]


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Tarjan: the groups of nodes that reach each other."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, frozenset()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def arrows() -> Iterator[tuple[str, str]]:
    for module in modules():
        if module != FACADE:
            yield from ((module, target) for target in imports(module) if target != FACADE)


def test_every_module_has_a_floor() -> None:
    assert {room(module) for module in modules()} == set(FLOOR)


def test_imports_go_down() -> None:
    up = [
        f"{module} -> {target}"
        for module, target in arrows()
        if room(module) != room(target) and FLOOR[room(module)] <= FLOOR[room(target)]
    ]
    assert up == [], "\n".join(up)


def test_no_circle_of_modules() -> None:
    graph = {module: frozenset(t for m, t in arrows() if m == module) for module in modules()}
    assert circles(graph) == []


def test_circles_are_seen() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert circles(graph) == [["a", "b", "c"]]


def test_every_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from typing import TYPE_CHECKING\nimport ff_core.errors\n"
        "if TYPE_CHECKING:\n    from ff_core.copy import arena\n"
        "def late() -> None:\n    from ff_core.config.schema import FailoverConfig\n"
        "from .contract import stamps\nfrom . import units\n"
    )
    path = tmp_path / "module.py"
    path.write_text(text)
    monkeypatch.setitem(modules(), "ff_core.module", path)
    assert imports("ff_core.module") == {
        "ff_core.errors",
        "ff_core.copy.arena",
        "ff_core.config.schema",
        "ff_core.contract.stamps",
        "ff_core.units",
    }


def test_what_a_contract_is_written_in() -> None:
    """Every process reads it: nothing but the standard library, the wire's libraries and, for a type, torch."""
    allowed = sys.stdlib_module_names | {"msgpack", "grpc", "torch"}
    for module in (name for name in modules() if room(name) == "ff_core.contract"):
        assert {room(target) for target in imports(module)} <= {"ff_core.contract", "ff_core.errors", "ff_core.units"}
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [absolute(module, node)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed | {"ff_core"}, module


@pytest.mark.parametrize("place", [name for floor in FLOORS for name in floor if name not in WITH_TORCH])
def test_without_torch(place: str) -> None:
    """Processes that only supervise start without torch: it costs seconds and hundreds of megabytes each."""
    names = [module for module in modules() if room(module) == place]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "print(sorted({'torch', 'deepspeed', 'megatron'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout == "[]\n", process.stderr


@pytest.mark.parametrize("folder", ["ff_core", "ff_deepspeed", "ff_megatron", "tests", "scripts"])
def test_one_concept_a_file(folder: str) -> None:
    """A file of more than 320 lines holds more than one concept."""
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".cpp", ".h", ".cu", ".sh")]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 320}
    assert files and long == {}
