"""A script under us compared with the same script under the interpreter itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

RUNNER = """
import sys
del sys.path[0]
from ff_core.worker import script
code = 0
try:
    script.run_as_main(sys.argv[1:])
except BaseException as error:
    code = script.report_exception(error)
    script.write_error_file(error)
sys.exit(code)
"""

SHOW = """
import atexit, inspect, json, os, pickle, sys, threading
class Local: pass
def say(*words): print(*words, flush=True)
say(__name__, __file__, __package__, __spec__ and __spec__.name, type(__loader__).__name__, sys.argv, sys.path[0])
say(sys.modules["__main__"].Local is Local, pickle.loads(pickle.dumps(Local)) is Local, sorted(globals()))
say(inspect.getsource(say).strip(), __builtins__.__name__, __doc__)
import helper
atexit.register(lambda: say("at exit", __name__, Local, sys.modules["__main__"].__dict__ is globals()))
threading.Thread(target=lambda: (threading.main_thread().join(), say("thread", Local))).start()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "helper.py").write_text("print('helper of', __name__)")
    (tmp_path / "helper.py").write_text("print('helper of the working directory')")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("print('package runs')")
    return tmp_path


def both(place: Path, *argv: str, env: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess[str], ...]:
    """(under the interpreter, under us)"""
    (place / "runner.py").write_text(RUNNER)
    environ = {**os.environ, **(env or {})}
    return tuple(
        subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, timeout=60, check=False)
        for command in ([sys.executable, *argv], [sys.executable, str(place / "runner.py"), *argv])
    )


def assert_same(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    plain, ours = both(place, *argv)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    return ours


def test_script(place: Path) -> None:
    (place / "scripts" / "train.py").write_text('"""Words."""' + SHOW)
    done = assert_same(place, "scripts/train.py", "--x", "1")
    assert done.returncode == 0 and "helper of helper" in done.stdout and "at exit" in done.stdout


def test_link_to_a_script_and_absolute_path(place: Path) -> None:
    (place / "scripts" / "train.py").write_text(SHOW)
    (place / "link.py").symlink_to(place / "scripts" / "train.py")
    assert_same(place, "link.py")
    assert_same(place, str(place / "scripts" / "train.py"))


def test_module_and_package(place: Path) -> None:
    (place / "pack" / "train.py").write_text(SHOW)
    (place / "pack" / "__main__.py").write_text(SHOW)
    assert "package runs" in assert_same(place, "-m", "pack.train", "--x").stdout
    assert_same(place, "-m", "pack", "a")


def test_directory_and_zip_file(place: Path) -> None:
    (place / "scripts" / "__main__.py").write_text("import sys, helper; print(sys.argv, sys.path[0], __name__)")
    assert_same(place, "scripts", "x")
    with zipfile.ZipFile(place / "app.zip", "w") as archive:
        archive.writestr("__main__.py", "import sys; print(sys.argv, sys.path[0], __name__)")
    assert_same(place, "app.zip", "x")


@pytest.mark.parametrize(
    "code",
    [
        "def f(): raise ValueError('bad')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('outer') from e",
        "raise SystemExit(3)",
        "raise SystemExit",
        "raise SystemExit('words')",
        "raise SystemExit(257)",
        "import os; os._exit(9)",
        "def f(:",
        "import sys; sys.excepthook = lambda *a: print('my hook', a[0]); 1 / 0",
        "# -*- coding: latin-1 -*-\nprint('text')\nassert False, 'why'",
    ],
)
def test_endings(place: Path, code: str) -> None:
    (place / "train.py").write_text(code)
    (place / "pack" / "train.py").write_text(code)
    assert_same(place, "train.py")
    assert_same(place, "-m", "pack.train")


def test_missing_module(place: Path) -> None:
    assert_same(place, "-m", "pack.nothing")


def test_spawned_children_find_the_scripts_functions(place: Path) -> None:
    (place / "train.py").write_text(
        textwrap.dedent("""
            import multiprocessing
            def double(x): return 2 * x
            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.map(double, [1, 2]))
        """)
    )
    assert assert_same(place, "train.py").stdout == "[2, 4]\n"


def test_safe_path(place: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no safe path")
    (place / "train.py").write_text("import sys; print(sys.path)")
    plain = both(place, "train.py", env={"PYTHONSAFEPATH": "1"})[0]
    code = RUNNER.replace("del sys.path[0]\n", "")
    ours = subprocess.run(
        [sys.executable, "-c", code, "train.py"], cwd=place, env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ours.stdout == plain.stdout


def test_error_file_as_torchrun_reads_it(place: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    (place / "train.py").write_text("raise ValueError('bad')")
    name = place / "records" / "error.json"
    both(place, "train.py", env={"TORCHELASTIC_ERROR_FILE": str(name)})
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(name))
    assert failure.message["message"] == "ValueError: bad"  # type: ignore[index]
    assert failure.message["extraInfo"]["py_callstack"].endswith("ValueError: bad\n")  # type: ignore[index]
    assert "script.py" not in failure.message["extraInfo"]["py_callstack"]  # type: ignore[index]


def test_error_file_of_record_is_kept(place: Path) -> None:
    name = place / "error.json"
    name.write_text(json.dumps("record's own"))
    (place / "train.py").write_text("raise ValueError('bad')")
    both(place, "train.py", env={"TORCHELASTIC_ERROR_FILE": str(name)})
    assert json.loads(name.read_text()) == "record's own"


def test_compiled_ahead_is_what_runs_unless_it_has_changed(tmp_path: Path) -> None:
    program = """
import sys
from ff_core.worker import script
script.compile_ahead(["train.py"])
script.compile = None  # nothing is compiled any more
if len(sys.argv) > 1:
    del script.compile
    open("train.py", "w").write("print('new')")
script.run_as_main(["train.py"])
"""
    (tmp_path / "train.py").write_text("print('old', __file__)")
    for arguments, expected in (([], "old " + str(tmp_path / "train.py")), (["x"], "new")):
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == expected
