"""Runs whole jobs under `fftrain run` and looks at what they left: for the end-to-end tests."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nursery import Nursery, decides
from tests.reference import reference

TESTS = Path(__file__).resolve().parents[1]
TOY = Path(__file__).with_name("toy.py")
LEAN = str(Path(__file__).with_name("lean"))
#: With TORCHDYNAMO_DISABLE no process loads torch's compiler (see lean/sitecustomize.py): seconds, more than a rank's
#: whole training. One job of each framework does without this.
ENV = {
    **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TORCHDYNAMO_DISABLE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [LEAN, os.environ.get("PYTHONPATH")])),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a finished job left. losses and digests by rank."""

    code: int
    stderr: str
    stdout: str
    out: Path
    events: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def results(self) -> dict[int, Any]:
        return results_of(self.out / "results")


def results_of(folder: Path) -> dict[int, Any]:
    """What the toy trainer's ranks left there, by rank."""
    return {int(path.stem[4:]): json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))}


def read_events(out: Path) -> list[dict[str, Any]]:
    path = out / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def fftrain(
    out: Path,
    script: Sequence[str],
    *options: str,
    ranks: int = 4,
    timeout_s: float = 240.0,
    meanwhile: Callable[[Path, subprocess.Popen[str]], None] | None = None,
    launcher: Sequence[str] = ("-m", "ff_core.launch.cli"),
    forked: bool = True,
) -> Job:
    """Run a job. meanwhile(out, process): called once it runs, to hurt it from outside.  launcher: for `fftrain`.
    forked: False if it is about what only a process of its own has, such as /proc/PID/environ."""
    out.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        *launcher,
        "run",
        "--nproc-per-node",
        str(ranks),
        "--out-dir",
        str(out),
        *options,
        *script,
    ]
    with open(out / "stdout", "w+") as stdout, open(out / "stderr", "w+") as stderr:
        streams = {"stdout": stdout, "stderr": stderr, "text": True}
        process = start(command, script[0], forked=forked, start_new_session=True, **streams)
        try:
            if meanwhile is not None:
                meanwhile(out, process)
            code = process.wait(timeout_s)
        except BaseException:
            family = _family(process.pid)
            for pid in family:
                _kill(pid)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired as stuck:
                raise AssertionError(f"killed, and still there: {[_where(pid) for pid in family]}") from stuck
            raise
    return Job(code, (out / "stderr").read_text(), (out / "stdout").read_text(), out, read_events(out))


def toy(out: Path, iterations: int, *arguments: str) -> list[str]:
    """Command line of the toy trainer; its results go to out/results."""
    return [str(TOY), "--iterations", str(iterations), "--out", str(out / "results"), *arguments]


#: Library -> what a nursery does ahead if the script uses it; None: just what the script imports from it.
LIBRARIES: dict[str, list[str] | None] = {
    "torch": ["torch"], "deepspeed": ["deepspeed", str(TESTS / "deepspeed" / "preload.py")], "transformers": None,
    "accelerate": None, "megatron.core": None,
}  # fmt: skip


_USUAL = decides(ENV)
GPUS = Path("/dev/nvidiactl").exists()


@functools.cache
def nursery(ahead: tuple[str, ...]) -> Nursery:
    return Nursery.start(ahead, ENV)


def imported(script: Path) -> list[str]:
    """What `script` and the files beside it that it imports take from elsewhere: "module" or "module:name"."""
    found: list[str] = []
    for node in ast.walk(ast.parse(script.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}:{name.name}" for name in node.names]
        for name in names:
            beside = script.with_name(f"{name.partition(':')[0]}.py")
            found += imported(beside) if beside.is_file() else [name]
    return found


def imports(script: Path) -> tuple[str, ...]:
    """What a nursery for `script` imports: "module", "module:name" or a file."""
    found = imported(script)
    ahead: list[str] = []
    for library, instead in LIBRARIES.items():
        names = [name for name in found if re.match(rf"{library}\b", name)]
        ahead += names if instead is None or not names else instead
    return tuple(dict.fromkeys(ahead))


def start(command: Sequence[str], script: str, *, forked: bool = True, **options: Any) -> subprocess.Popen[str]:
    """Popen(command) for a job of `script`, forked from a process that has imported its libraries: see
    tests/nursery.py. With another compiler or other paths in ENV than usual, it starts as any process does; and where
    there are GPUs, whose driver does not work in a fork of a process that has asked it for anything."""
    usual = decides(ENV) == _USUAL and script.endswith(".py") and not GPUS and "TESTS_COLD" not in os.environ
    if not (forked and usual):
        return subprocess.Popen(command, env=ENV, **options)
    return nursery(imports(Path(script))).popen(command, env=ENV, **options)


def torchrun(
    script: Sequence[str], ranks: int = 4, timeout_s: float = 240.0, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script under plain torchrun, for comparison. On a very busy machine its own rendezvous fails now and then:
    that says nothing about us, so it gets three tries.  folder: what it writes into, emptied before each; a script may
    append."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone", *script]
    for attempt in range(3):
        if attempt and folder is not None:
            shutil.rmtree(folder)
            folder.mkdir()
        process = start(command, script[0], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
        done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
        if done.returncode == 0:
            break
        print(f"torchrun's try {attempt + 1} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done


def uninterrupted(
    script: str, arguments: Sequence[str], places: Callable[[Path], Sequence[str]], ranks: int = 4
) -> Path:
    """The folder with the results of this training under plain torchrun, made once (see tests/reference.py).

    places(folder): further arguments, which say where to write and do not change the result.
    """

    def make(folder: Path) -> None:
        done = torchrun([script, *arguments, *places(folder)], ranks, 500, folder)
        assert done.returncode == 0, done.stderr[-3000:]

    files = [Path(word).read_text() for word in arguments if len(word) < 256 and Path(word).is_file()]
    compiler = "without" if "TORCHDYNAMO_DISABLE" in ENV else "with"  # compiled functions may round otherwise
    return reference(Path(script), [*arguments, *files, str(ranks), f"{compiler} compiler"], make)


def wait_for(out: Path, wanted: Callable[[list[dict[str, Any]]], Any], timeout_s: float = 180.0) -> Any:
    """Poll the job's events until `wanted(events)` is true; returns it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        events = read_events(out)
        found = wanted(events)
        if found:
            return found
        assert events[-1:] == [] or events[-1]["kind"] != "job_end", f"not seen, and the job is over: {events[-1]}"
        time.sleep(0.05)
    raise AssertionError(f"not seen within {timeout_s} s; events: {[e['kind'] for e in read_events(out)][-20:]}")


def committed(version: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether W has reached `version`."""
    return lambda events: any(event["kind"] == "commit" and event["W"] >= version for event in events)


def pid_of(out: Path, rank: int) -> int:
    """The process that plays `rank` now."""
    return [event for event in read_events(out) if event["kind"] == "worker_start" and event["rank"] == rank][-1]["pid"]


def agent_pid(out: Path, node: int) -> int:
    """The process of the agent of `node`."""
    return next(event["pid"] for event in read_events(out) if event["kind"] == "node_start" and event["node"] == node)


def _family(pid: int) -> list[int]:
    import psutil

    try:
        process = psutil.Process(pid)
        return [*(child.pid for child in process.children(recursive=True)), pid]
    except psutil.NoSuchProcess:
        return []


def _where(pid: int) -> str:
    """What the kernel says of each thread of a process that does not end: its state and the function it waits in."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(f"{(task / 'stat').read_text()[:60]} in {(task / 'wchan').read_text()}")
    return f"{pid}: {found}"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
