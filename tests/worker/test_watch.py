"""Modules that ask for the rank when they are imported: a spare must find them, and leave them to the rank."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from ff_core.contract.env import EVERYTHING, RANK_VARIABLES
from ff_core.worker import preload
from ff_core.worker.watch import digest

ASKS = {
    "get": "VALUE = os.environ.get('RANK')",
    "getenv": "VALUE = os.getenv('LOCAL_RANK', '0')",
    "in": "VALUE = 'WORLD_SIZE' in os.environ",
    "by name": "from os import environ\ntry: VALUE = environ['RANK']\nexcept KeyError: VALUE = None",
    "bytes": "VALUE = os.environb.get(b'RANK')",
    "copy": "VALUE = os.environ.copy()",
    "dict": "VALUE = dict(os.environ)",
    "unpacked": "VALUE = {**os.environ}",
    "picked from all": "VALUE = [int(v) for k, v in os.environ.items() if k == 'RANK']",
    "compared": "VALUE = any(k == 'RANK' and v == '0' for k, v in os.environ.items())",
    "kept in a closure": "def make(e=os.environ.copy()): return e",
    "asked after a loop": "for k in os.environ: pass\nVALUE = os.environ.get('RANK') is None",
    "setdefault": "os.environ.setdefault('MASTER_PORT', '1')",
    "set": "os.environ['RANK'] = '0'",
    "removed": "os.environ.pop('LOCAL_RANK', None)",
    "in a function": "def ask(): return os.getenv('RANK')\nVALUE = ask()",
    "in a class": "class C:\n    rank = os.getenv('RANK')",
    "the group": "import torch.distributed as d\nVALUE = d.get_rank() if d.is_initialized() else 0",
    "random": "import random\nVALUE = random.random()",
    "numpy.random": "import numpy\nVALUE = numpy.random.rand()",
    "torch.rand": "import torch\nVALUE = torch.rand(1)",
}
DOES_NOT = {
    "others": "VALUE = os.environ.get('HOME'), os.getenv('NOWHERE'), 'PATH' in os.environ",
    "copy for a program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
    "copy given to a program": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'import os; assert not os.getenv(\"RANK\")'], env=os.environ, check=True)",
    "a dict given to one": "import subprocess\nsubprocess.check_output(['true'], env={**os.environ, 'A': '1'})",
    "later": "def ask(): return os.environ['RANK']",
    "all of a prefix": "VALUE = {k: v for k, v in os.environ.items() if k.startswith('TQDM_')}",
    "loop variable": "for k, v in os.environ.items(): pass",
    "copy thrown away": "len(os.environ.copy())",
    "sets its own": "os.environ.setdefault('A_SETTING_OF_MINE', '1')",
    "the group, later": "import torch.distributed as d\ndef rank(): return d.get_rank()",
    "a generator of its own": "import random\nVALUE = random.Random(3).random()",
}


def module(place: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    """Modules that can be imported during this test only."""
    monkeypatch.syspath_prepend(place)
    for name in texts:
        (place / f"{name}.py").write_text("import os\n" + texts[name])
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture(autouse=True)
def _environment_and_modules_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for name in (*RANK_VARIABLES, "A_SETTING_OF_MINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("text", ASKS.values(), ids=ASKS)
def test_a_module_that_asks_for_the_rank_makes_the_process_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    module(tmp_path, monkeypatch, asks_rank=text)
    before = type(os.environ)
    result = preload.run(["asks_rank", "json"], [["json:dumps", [1]]])
    assert set(result.unfit) == {"asks_rank"} and result.called == 0
    assert not dist.is_initialized() and np.random is sys.modules["numpy.random"]  # they can be noticed
    assert type(os.environ) is before and len(set(os.environ)) == len(os.environ)  # nothing made up is left
    again = preload.run(["asks_rank", "json"], [["json:dumps", [1]]], without=list(result.unfit))
    assert (again.unfit, again.imported, again.called) == ({}, 1, 1)


@pytest.mark.parametrize("text", DOES_NOT.values(), ids=DOES_NOT)
def test_a_module_that_asks_for_something_else_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    module(tmp_path, monkeypatch, asks_nothing=text)
    result = preload.run(["asks_nothing"], [])
    assert (result.unfit, result.skipped, result.imported) == ({}, {}, 1)


def test_a_call_that_asks_for_the_rank_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, has_call="def call(): os.environ.get('RANK')")
    result = preload.run([], [["has_call:call", []]])
    assert result.unfit == {"has_call:call": "reads or sets RANK while it is imported"}
    again = preload.run([], [["has_call:call", []]], without=list(result.unfit))
    assert (again.unfit, again.called) == ({}, 0)


IMPORTERS = {
    "plainly": "import asks",
    "by name": "from asks import RANK",
    "if it is there": "try:\n    import asks\nexcept ImportError:\n    asks = None",
    "whatever happens": "try:\n    import asks\nexcept:\n    asks = None",
}


@pytest.mark.parametrize("text", IMPORTERS.values(), ids=IMPORTERS)
def test_who_imports_it_waits_too(tmp_path: Path, text: str) -> None:
    """Also who imports it when it is there already. In processes of their own, as an unfit one is of no more use."""
    files = {"asks.py": "import os\nRANK = os.getenv('RANK')", "first.py": "import asks", "other.py": text,
             "outer.py": "import other", "free.py": ""}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    waiting: list[str] = []
    for _ in range(4):
        code = f"""
            import json, sys
            from ff_core.worker import preload
            result = preload.run(["first", "outer", "asks", "free"], [], without={waiting!r})
            print(json.dumps([result.unfit, sorted({{"asks", "first", "outer", "other", "free"}} & set(sys.modules))]))
        """
        unfit, loaded = json.loads(python(tmp_path, code))
        if not unfit:
            break
        waiting += list(unfit)
    assert loaded == ["free"] and set(waiting) == {"asks", "first", "outer", "other"}


def python(place: Path, code: str) -> str:
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "PYTHONPATH": str(place)}
    process = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_file_beside_the_script_is_not_taken_for_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the rank the library would get the script's own `utils`; in a spare there is none, or another one."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "train.py").write_text("")
    (tmp_path / "script" / "mine_of_this_test.py").write_text("")
    module(tmp_path, monkeypatch, optional="try:\n    import mine_of_this_test\nexcept ImportError:\n    pass")
    result = preload.run(["optional"], [], argv=[str(tmp_path / "script" / "train.py"), "--x"])
    assert "the script's own" in result.unfit["optional"]
    assert sys.argv[1:] == ["--x"]


@pytest.mark.parametrize("package", ["", "spread."])
def test_what_the_script_finds_by_a_path_of_its_own_waits_for_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """A library that can do without it would do without it for good. So with a package that lies at two places."""
    name = "added_by_this_test"
    (tmp_path / "added" / package.rstrip(".")).mkdir(parents=True)
    (tmp_path / "added" / package.rstrip(".") / f"{name}.py").write_text("")
    (tmp_path / "here" / "spread").mkdir(parents=True)
    (tmp_path / "here" / "spread" / "part.py").write_text("")
    text = f"import spread.part\ntry:\n    import {package}{name}\n    HAS = True\nexcept ImportError:\n    HAS = False"
    module(tmp_path / "here", monkeypatch, optional=text)
    for of in ("spread", "spread.part"):
        monkeypatch.delitem(sys.modules, of, raising=False)
    with monkeypatch.context() as script:
        script.syspath_prepend(tmp_path / "added")
        paths = preload.search_paths()
    result = preload.run(["optional", "json"], [], paths=paths)
    assert str(tmp_path / "added") in result.unfit["optional"] and len(result.unfit) == 1
    assert not preload.run(["optional"], []).unfit, "nothing else is wrong with it"


def test_what_a_library_finds_by_a_path_of_its_own_is_imported_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setuptools adds a folder of its own to the path. What lies there is imported when the rank's is: behind it."""
    package = tmp_path / "site-packages" / "brings_its_own"
    (package / "vendored").mkdir(parents=True)
    (package / "__init__.py").write_text(f"import sys\nsys.path.append({str(package / 'vendored')!r})")
    (package / "vendored" / "brought_along.py").write_text("")
    module(tmp_path / "site-packages", monkeypatch, optional="try:\n    import brought_along\nexcept ImportError: pass")
    with monkeypatch.context() as rank:
        rank.setattr(sys, "path", [*sys.path, str(package / "vendored")])
        paths = preload.search_paths()
    assert str(tmp_path / "site-packages") in paths
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = ["brought_along", "optional", "brings_its_own", "brought_along"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = preload.run(names, [], paths=paths)
    assert result.unfit == {} and result.imported == 3 and "brought_along" in result.skipped
    monkeypatch.delitem(sys.modules, "brings_its_own")
    monkeypatch.delitem(sys.modules, "brought_along")


def test_variables_that_the_script_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, sets = "VALUE = os.getenv('SCRIPTS'), os.getenv('LIBS')", "os.environ['LIBS'] = '1'"
    module(tmp_path, monkeypatch, reads=reads, sets=sets)
    monkeypatch.setenv("LIBS", "")
    monkeypatch.delenv("LIBS")
    changed = {"SCRIPTS": digest("by the script"), "LIBS": digest("1")}
    result = preload.run(["reads", "sets"], [], changed=changed)
    assert set(result.unfit) == {"reads"}
    assert result.unfit["reads"].startswith("reads or sets SCRIPTS, which the script sets, while it is imported")
    for name, value in (("SCRIPTS", "by the script"), ("LIBS", "1")):  # the remedy
        monkeypatch.setenv(name, value)
    assert preload.run(["reads", "sets"], [], changed=changed).unfit == {}


def test_a_setting_of_the_whole_job_is_made_for_the_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.setenv(name, "true")
    preload.remember_environment()
    monkeypatch.setenv(name, "false")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    settings, changed = preload.settings_of_job(), preload.changed_environment()
    assert settings == {name: "false"}
    monkeypatch.setenv(name, "true")
    module(tmp_path, monkeypatch, reads_it=f"VALUE = os.getenv({name!r})")
    result = preload.run(["reads_it"], [], changed=changed, settings=settings)
    assert result.unfit == {} and sys.modules["reads_it"].VALUE == "false"
    assert os.environ[name] == "true"  # as the script finds it


def test_a_variable_that_counts_when_a_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert preload.run(["json"], [], changed={"OMP_NUM_THREADS": digest("1")}).unfit == {}
    changed = {"OMP_NUM_THREADS": digest("4")}
    result = preload.run(["json"], [], changed=changed)
    assert "OMP_NUM_THREADS" in result.unfit[EVERYTHING]
    nothing = preload.run(["json"], [["json:dumps", [1]]], changed=changed, without=[EVERYTHING])
    assert (nothing.imported, nothing.called) == (0, 0)


def test_what_the_script_changed_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOES", "1")
    preload.remember_environment()
    monkeypatch.setenv("COMES", "secret")
    monkeypatch.delenv("GOES")
    monkeypatch.setenv("RANK", "3")
    assert preload.changed_environment() == {"COMES": digest("secret"), "GOES": ""}


C_SOURCE = """
    #include <stdlib.h>
    static const char *at_load, *other;
    __attribute__((constructor)) static void ask(void) { at_load = getenv("FIRST"); other = getenv("SECOND"); }
    const char *kept(void) { return at_load; }
"""


@pytest.mark.parametrize(
    ("first", "second", "asks"),
    [
        ("RANK", "PMI_RANK", True),  # linkers keep one string for both
        ("LOCAL_RANK", "TERM", True),
        ("FRANK", "TERM", False),
        ("HOME", "TERM", False),
    ],
)
def test_a_compiled_library_that_may_ask_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, asks: bool
) -> None:
    source, library = tmp_path / "asks.c", tmp_path / "libasks.so"
    source.write_text(C_SOURCE.replace("FIRST", first).replace("SECOND", second))
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    module(tmp_path, monkeypatch, has_library=f"import ctypes\nLIBRARY = ctypes.CDLL({str(library)!r})")
    result = preload.run(["has_library"], [])
    assert set(result.unfit) == ({"has_library"} if asks else set())
    if asks:
        assert f"loads {library}, which may read" in result.unfit["has_library"]


def test_c_code_sees_the_rank_of_a_spare_that_got_one() -> None:
    """os.environ is what the script asks, getenv() what its libraries ask: both must have the rank's values."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    os.environ["RANK"] = "7"
    preload.run(["json"], [])
    assert getenv(b"RANK") is None, "a library that asks then must find none"
    os.environ.update(RANK="3")  # as worker_main does
    assert getenv(b"RANK") == b"3"
