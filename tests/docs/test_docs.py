"""The pages: every command in them is run, every link leads somewhere, every message exists."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
#: The changelog has an entry a line.
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Run elsewhere: the demo and the benchmark (with --quick) by tests of their own, the tests by whoever runs this one.
ELSEWHERE = {
    "make demo": "tests/scripts/test_demo.py",
    "make test": ".ci/run",
    "python scripts/bench_recovery.py": "tests/scripts/test_bench_recovery.py",
    "fftrain run --nnodes": "tests/e2e/test_nodes.py",
    "fftrain drain": "tests/e2e/test_drain.py",
}
WIDTH = 100
ALONE = re.compile(r"\s*(?:[*-] |\d+\. )?(?:\[[^]]*\]\(\S+\)|\S+)[.,:;]?$")
INLINE = re.compile(r"`(fftrain [a-z]+ [^`]+)`")
COMMAND = re.compile(r"^(make|python|fftrain|torchrun|pip) ")


def blocks(page: Path, language: str = "") -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """Command lines of a page's plain blocks, without their comments."""
    lines = [line.split("   #")[0].split("  #")[0].strip() for text in blocks(page) for line in text.splitlines()]
    return [line for line in lines if COMMAND.match(f"{line} ")]


def test_commands_are_known() -> None:
    """A new command in a page needs a test that runs it: here, or in the file that ELSEWHERE names."""
    ours = {page.name: [c for c in commands(page) if not elsewhere(c)] for page in PAGES}
    assert {name: len(found) for name, found in ours.items() if found} == {
        "README.md": 1, "patching.md": 3, "troubleshooting.md": 2,
    }  # fmt: skip
    for place in ELSEWHERE.values():
        assert (ROOT / place).is_file()


def elsewhere(command: str) -> bool:
    return any(command.startswith(known) for known in ELSEWHERE)


@pytest.fixture()
def project(tmp_path: Path) -> Path:
    """A directory in which the pages' commands can be typed: the project, and a user's train.py and ds.json."""
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = (ROOT / "scripts/train_gpt.py").read_text()
    (tmp_path / "train.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'scripts')!r})\n{moved(script)}")
    config = json.loads((ROOT / "configs/deepspeed/zero1_bf16.json").read_text())
    assert config["ff_failover"] == {"enabled": True}  # as the README says
    (tmp_path / "ds.json").write_text(json.dumps(config))
    return tmp_path


def moved(script: str) -> str:
    """The script with its future import first to go: only the top of a file may have one."""
    return script.replace("from __future__ import annotations\n", "")


def type_in(directory: Path, command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "fftrain"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "ff_core.launch.cli", *words[1:]], cwd=directory, env=environment, timeout=800,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_users_own_job(project: Path) -> None:
    page = ROOT / "README.md"
    (run,) = [command for command in commands(page) if not elsewhere(command)]
    done = type_in(project, run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NOT of a node" in done.stderr  # one machine only, as the README says
    (report,) = [c for c in INLINE.findall(page.read_text()) if c.startswith("fftrain report")]
    done = type_in(project, report)
    assert done.returncode == 0, done.stderr
    assert "no failover" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trying_a_fault_out(project: Path) -> None:
    run, report = (command for command in commands(ROOT / "docs/troubleshooting.md"))
    done = type_in(project, run)
    assert done.returncode == 0, done.stderr[-3000:]
    done = type_in(project, report)
    assert done.returncode == 0, done.stderr
    assert "failovers (seconds)" in done.stdout
    assert (project / "out/try/report.html").exists()


def test_patching(project: Path) -> None:
    site = project / ".venv/lib/python3.11/site-packages"
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    names = ("deepspeed/__init__.py", "deepspeed/runtime/config.py")
    (site / "deepspeed/runtime").mkdir(parents=True)
    for name in names:
        shutil.copyfile(Path(spec.origin).parents[1] / name, site / name)
    before = [(site / name).read_bytes() for name in names]
    said = []
    for command in commands(ROOT / "docs/patching.md"):
        done = type_in(project, command)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split(": ")[2].split(";")[0].strip())
    assert said == ["applicable", "applied", "reverted"]
    assert [(site / name).read_bytes() for name in names] == before


def test_the_loop_of_the_readme_is_the_loop_of_the_training_script() -> None:
    (text,) = blocks(ROOT / "README.md", "python")
    loop = "for batches in ff_deepspeed.batches(engine, loader):"
    assert loop in text
    assert loop in (ROOT / "scripts/train_gpt.py").read_text()
    import ff_deepspeed

    used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "ff_deepspeed"}  # fmt: skip
    assert used == {"batches", "iteration"}
    assert used <= set(ff_deepspeed.__all__)


def test_names_in_the_readme_exist() -> None:
    import ff_core
    import ff_deepspeed

    text = (ROOT / "README.md").read_text()
    for package, module in (("ff_core", ff_core), ("ff_deepspeed", ff_deepspeed)):
        names = set(re.findall(rf"`{package}\.(\w+)\(", text))
        assert names, package
        assert names <= set(module.__all__)


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings: lower case, without punctuation, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if not target.startswith("https://"):
            place = page.parent / target if target else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


def wide_lines(text: str) -> list[str]:
    """Lines of prose longer than WIDTH. Not prose: blocks of code, rows of a table, a line that is one link or word."""
    prose = BLOCK.sub("", text).splitlines()
    return [line for line in prose if len(line) > WIDTH and not line.startswith("|") and not ALONE.match(line)]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page: Path) -> None:
    assert wide_lines(page.read_text()) == []


def test_what_counts_as_prose() -> None:
    wide, link = "word " * 25, f"[a page](https://example.org/{'x' * WIDTH})"
    assert wide_lines(f"{wide}\n* {wide}\n  {wide}\n## {wide}\n{wide}{link}\n") == [
        wide, f"* {wide}", f"  {wide}", f"## {wide}", f"{wide}{link}",
    ]  # fmt: skip
    assert wide_lines(f"```sh\n{wide}\n```\n| {wide} |\n{link}\n- {link}.\n`{'x' * WIDTH}`\n") == []


def test_decisions_are_dated_short_and_newest_first() -> None:
    head, *entries = re.split(r"^## ", (ROOT / "docs/decisions.md").read_text(), flags=re.MULTILINE)
    dates = [re.match(r"(\d{4}-\d\d-\d\d): \S", entry) for entry in entries]
    assert head and len(entries) > 10 and all(dates)
    assert [date[1] for date in dates if date] == sorted((date[1] for date in dates if date), reverse=True)
    long = [entry.splitlines()[0] for entry in entries if len(entry.strip().splitlines()) > 1 + 10]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_tables_exist(page: Path) -> None:
    for name in re.findall(r"^\| `((?:ff_\w+|scripts|tests)/[\w/.]*)`", page.read_text(), re.MULTILINE):
        assert (ROOT / name).exists(), name


def source_texts() -> str:
    """All string constants of the packages; {} where an f-string fills something in."""
    texts = []
    for package in ("ff_core", "ff_deepspeed", "ff_megatron"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    for file in (ROOT / "ff_core/csrc").rglob("*.cpp"):
        texts += re.findall(r'"([^"\n]*)"', file.read_text())
    texts += re.findall(r"^class (\w+)", (ROOT / "ff_core/errors.py").read_text(), re.MULTILINE)
    return "\n".join(texts)


def test_messages_in_troubleshooting_exist() -> None:
    """Word for word, but for what is filled in (one capital letter, a number, ...)."""
    source = source_texts()
    text = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        for part in re.split(r"\.\.\.|\b(?:[A-Z]|\d+)\b", message):
            piece = part.strip(' ."')
            assert piece in source, f"{message!r}: {piece!r} is in no message of the source"
