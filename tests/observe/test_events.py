from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ff_core.errors import FailoverError
from ff_core.observe.events import FILE_NAME, KINDS, EventLog, read_events

ROOT = Path(__file__).resolve().parents[2]


def test_round_trip_in_order_of_time(tmp_path: Path) -> None:
    with EventLog(tmp_path / "new" / "dir") as log:
        log.emit("commit", t=2.0, W=3)
        log.emit("worker_start", t=1.0, rank=1, text="ü\n", path=Path("x"), loss=float("nan"))
        log.emit("job_end", code=0)
    first, second, third = read_events(tmp_path / "new" / "dir")
    assert (first.kind, first.t, first.fields["text"], first.fields["path"]) == ("worker_start", 1.0, "ü\n", "x")
    assert (second.kind, second.fields) == ("commit", {"W": 3})
    assert third.t > 1.7e9


def test_threads_and_processes_never_mix_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from ff_core.observe.events import EventLog\n"
        "log = EventLog(sys.argv[1])\n"
        "for i in range(200): log.emit('commit', W=i, who=sys.argv[2], padding='x' * 3000)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in ("a", "b")]
    log = EventLog(tmp_path)
    threads = [
        threading.Thread(target=lambda: [log.emit("commit", W=i, who="t", padding="y" * 3000) for i in range(200)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    lines = (tmp_path / FILE_NAME).read_text().splitlines()
    assert len(lines) == 1000
    for who, copies in (("a", 1), ("b", 1), ("t", 3)):
        versions = [fields["W"] for fields in map(json.loads, lines) if fields["who"] == who]
        assert sorted(versions) == sorted([*range(200)] * copies)


def test_torn_lines_are_left_out_and_not_continued(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.emit("commit", W=1)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"t": 5.0, "kind": "com')
    assert [event.fields["W"] for event in read_events(tmp_path)] == [1]
    with EventLog(tmp_path) as log:
        log.emit("commit", W=2)
    assert [event.fields["W"] for event in read_events(tmp_path)] == [1, 2]


def test_full_disk_is_said_once_and_training_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    log = EventLog(tmp_path)
    log.emit("commit", W=1)
    log.emit("commit", W=2)
    assert capfd.readouterr().err.count("events are being lost") == 1


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(FailoverError, match=r"events\.jsonl does not exist.*--out-dir"):
        read_events(tmp_path)


def test_not_a_log(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("hello\n[1, 2]\n{}\n")
    with pytest.raises(FailoverError, match="holds no event"):
        read_events(tmp_path)


def test_empty_log(tmp_path: Path) -> None:
    EventLog(tmp_path).close()
    assert read_events(tmp_path) == []


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailoverError, match=r"cannot be written to .*/file/x/events\.jsonl: Not a directory"):
        EventLog(tmp_path / "file" / "x")


def test_every_kind_in_the_source_is_documented() -> None:
    used: dict[str, str] = {}
    for path in [*(ROOT / "ff_core").rglob("*.py"), *(ROOT / "ff_deepspeed").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"
                and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
            ):  # fmt: skip
                used[node.args[0].value] = path.name
    assert used
    assert not used.keys() - KINDS.keys()
