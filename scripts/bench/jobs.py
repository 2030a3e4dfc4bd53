"""Jobs as child processes: a training script under torchrun or `fftrain run`; what they leave is in one directory.

The script is `scripts/train_gpt.py` (DeepSpeed) or `tests/megatron/train_tiny.py` (Megatron, on CPU by a test's shim).

DIR/output.log: what the launcher and its workers printed. DIR/losses.jsonl: loss per step, written by rank 0.
DIR/result.rankR.json: hashes and losses of rank R, written when training has ended. DIR/events.jsonl: by `fftrain run`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ff_core.errors import FailoverError

ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 30.0
FRAMEWORKS = ("deepspeed", "megatron")
#: Megatron's (layers, hidden size) for models of about the size that scripts/train_gpt.py calls by that name.
MEGATRON_SIZES = {"tiny": (4, 32), "deep": (24, 32), "5m": (4, 320)}


class JobFailed(FailoverError):
    """A job ended badly, or did not do in time what it was waited for; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, and with which framework ("deepspeed" or "megatron").

    steps: optimizer steps.  size: of the model.  config: DeepSpeed's JSON file.  extra: further arguments.
    """

    steps: int
    size: str = "5m"
    config: Path = ROOT / "configs" / "deepspeed" / "zero1_bf16.json"
    extra: tuple[str, ...] = ()
    framework: str = "deepspeed"

    def configured(self, directory: Path, **fields: dict[str, Any]) -> Training:
        """The same with `fields` added to those sections of DeepSpeed's configuration; DIR/deepspeed.json is it."""
        directory.mkdir(parents=True, exist_ok=True)
        configuration = json.loads(self.config.read_text())
        for section, added in fields.items():
            configuration[section] = {**configuration.get(section, {}), **added}
        config = directory / "deepspeed.json"
        config.write_text(json.dumps(configuration))
        return replace(self, config=config)

    def command(self, directory: Path) -> list[str]:
        """The script with its arguments; what it writes goes to `directory`."""
        if self.framework == "megatron":
            layers, hidden = MEGATRON_SIZES[self.size]
            return [
                str(ROOT / "tests" / "megatron" / "train_tiny.py"), "--bf16", "--use-distributed-optimizer",
                "--num-layers", str(layers), "--hidden-size", str(hidden), "--train-iters", str(self.steps),
                "--result", str(directory / "result.json"), "--loss-log", str(directory / "losses.jsonl"), *self.extra,
            ]  # fmt: skip
        return [
            str(ROOT / "scripts" / "train_gpt.py"), "--deepspeed_config", str(self.config), "--size", self.size,
            "--steps", str(self.steps), "--result", str(directory / "result.json"),
            "--loss-log", str(directory / "losses.jsonl"), *self.extra,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cluster:
    """What it is trained on: `ranks` processes on `nodes` emulated nodes with `spares` waiting processes each."""

    ranks: int = 4
    nodes: int = 2
    spares: int = 1


def fftrain_command(directory: Path, training: Training, cluster: Cluster, options: Sequence[str] = ()) -> list[str]:
    """`fftrain run`, events and logs in `directory`."""
    switch = ("--ff-failover",) if training.framework == "megatron" else ()
    return [
        sys.executable, "-m", "ff_core.launch.cli", "run", "--nproc-per-node", str(cluster.ranks),
        "--emulate-nodes", str(cluster.nodes), "--spares", str(cluster.spares), "--out-dir", str(directory),
        *options, *training.command(directory), *switch,
    ]  # fmt: skip


#: Options of jobs in which every version is copied: times between commits are iterations then.
EVERY = ("--ff-config", str(Path(__file__).with_name("every.json")))


def torchrun_command(directory: Path, training: Training, ranks: int, options: Sequence[str] = ()) -> list[str]:
    """Plain torchrun on this machine."""
    rendezvous = ("--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    return [
        sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(ranks), *options,
        *training.command(directory),
    ]  # fmt: skip


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process, as Ctrl-C does, so that its jobs end with it."""

    def unwind(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, unwind)


def shown(command: Sequence[str]) -> str:
    """A command as a person would type it."""
    words = list(command)
    for module, name in (("ff_core.launch.cli", "fftrain"), ("torch.distributed.run", "torchrun")):
        if words[1:3] == ["-m", module]:
            words = [name, *words[3:]]
    cwd = f"{Path.cwd()}{os.sep}"
    return " ".join(f'"{word}"' if " " in word else word.removeprefix(cwd) for word in words)


@dataclass
class Job:
    """A running job. Use it as a context manager: on leaving, whatever still runs of it is ended."""

    directory: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # A child may clutter stderr with what concerns nobody here; all of it is kept in the log.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.started = time.time()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self.directory / "output.log"

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self, deadline: float, waiting_for: str) -> None:
        """Raises JobFailed if the job has ended with an error, or if `deadline` (time.monotonic()) has passed."""
        code = self.process.poll()
        if code is not None and code != 0:
            raise JobFailed(f"the job ended with exit code {code} before {waiting_for}{self.last_words()}")
        if time.monotonic() > deadline:
            raise JobFailed(f"no end of waiting for {waiting_for}{self.last_words()}")

    def last_words(self, lines: int = 25) -> str:
        """The end of its log, as part of a message."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join((f"; the end of {self.log}:", *text[-lines:]))

    def stop(self) -> None:
        """End the job and all of its processes."""
        family = _family(self.process.pid) if self.running else []
        if self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in family:
            try:
                process.kill()  # psutil makes sure that the id is still this process's
            except psutil.NoSuchProcess:
                continue

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.stop()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []
