"""Import hooks, with packages made for the test. Each case runs in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ff_core.worker.hooks import resolve

FILES = {
    "outer/__init__.py": "print('outer begins'); from outer import inner; print('outer ends')",
    "outer/inner.py": "print('inner runs')",
    "outer/late.py": "print('late runs')",
    "alone.py": "print('alone runs')",
    "broken.py": "raise ImportError('broken')",
    "calls.py": """
print('calls imported')
def hook(): print('hook')
def failing(): raise ValueError('hook failed')
class Nested:
    hook = staticmethod(lambda: print('nested hook'))
""",
}


@pytest.fixture
def run(tmp_path: Path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(code: str) -> list[str]:
        prelude = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ff_core.worker.hooks import when_imported\n"
        argv = [sys.executable, "-c", prelude + textwrap.dedent(code)]
        process = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    return run


def test_runs_after_the_module_and_imports_its_own_module_only_then(run) -> None:
    assert run("when_imported('alone', 'calls:hook'); import alone, outer.late") == [
        "alone runs", "calls imported", "hook", "outer begins", "inner runs", "outer ends", "late runs",
    ]  # fmt: skip


def test_at_once_when_already_imported(run) -> None:
    assert run("import alone; when_imported('alone', 'calls:hook'); print('after')")[-2:] == ["hook", "after"]


def test_once(run) -> None:
    lines = run("""
        when_imported('alone', 'calls:hook')
        import alone, importlib
        del sys.modules['alone']
        importlib.import_module('alone')
    """)
    assert lines.count("hook") == 1 and lines.count("alone runs") == 2


def test_never_when_never_imported(run) -> None:
    assert run("when_imported('alone', 'calls:hook'); import outer") == ["outer begins", "inner runs", "outer ends"]


def test_waits_for_the_package_that_imports_the_module(run) -> None:
    assert run("when_imported('outer.inner', 'calls:hook'); import outer") == [
        "outer begins", "inner runs", "outer ends", "calls imported", "hook",
    ]  # fmt: skip


def test_submodule_imported_later(run) -> None:
    assert run("when_imported('outer.late', 'calls:hook'); import outer; print('x'); import outer.late")[-4:] == [
        "x", "late runs", "calls imported", "hook",
    ]  # fmt: skip


def test_several_hooks_on_one_module_in_order(run) -> None:
    lines = run("when_imported('alone', 'calls:hook'); when_imported('alone', 'calls:Nested.hook'); import alone")
    assert lines[-2:] == ["hook", "nested hook"]


def test_module_keeps_its_own_loader_and_spec(run) -> None:
    assert run("""
        when_imported('alone', 'calls:hook')
        import alone, importlib.machinery, inspect
        own = importlib.machinery.SourceFileLoader
        print(type(alone.__loader__) is own, type(alone.__spec__.loader) is own, inspect.getsource(alone).strip())
    """)[-1] == "True True print('alone runs')"  # fmt: skip


def test_failed_import_fires_nothing_and_can_be_tried_again(run) -> None:
    assert run("""
        when_imported('broken', 'calls:hook')
        for _ in range(2):
            try:
                import broken
            except ImportError as error:
                print(error)
    """) == ["broken", "broken"]  # fmt: skip


def test_a_failing_hook_fails_the_import(run) -> None:
    assert run("""
        when_imported('alone', 'calls:failing')
        try:
            import alone
        except ValueError as error:
            print(error)
    """)[-1] == "hook failed"  # fmt: skip


def test_missing_module_is_still_missing(run) -> None:
    assert run("""
        when_imported('nowhere.to_be', 'calls:hook')
        try:
            import nowhere
        except ModuleNotFoundError as error:
            print(error.name)
    """) == ["nowhere"]  # fmt: skip


def test_import_from_two_threads_fires_once(run) -> None:
    lines = run("""
        when_imported('alone', 'calls:hook')
        import importlib, threading
        threads = [threading.Thread(target=importlib.import_module, args=('alone',)) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
    """)
    assert lines.count("hook") == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [("json", ValueError), (":dumps", ValueError), ("json:", ValueError), ("json:nothing", AttributeError),
     ("nowhere_at_all:f", ImportError), ("sys:argv", ValueError)],
)  # fmt: skip
def test_resolve_refuses(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve(name)


def test_resolve() -> None:
    import json

    assert resolve("json:dumps") is json.dumps
    assert resolve("json:JSONDecoder.decode") is json.JSONDecoder.decode
