"""Processes of tests' jobs that need not start up: forked from one that has imported torch and the framework already.

    nursery = Nursery(["torch"], env)
    process = nursery.popen([sys.executable, "-m", "ff_core.launch.cli", "run", ...], env=env)

What comes out is what subprocess.Popen would have started: a child of the caller, with its arguments, environment,
working directory and descriptors. It may be killed, waited for, and starts its own session if it was to. Launchers and
agents that come from a nursery have one of their own, forked before they do anything else, for the processes that they
start. Nothing of this project is imported ahead.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: Modules and files that start processes which are worth a nursery.
PARENTS = ("ff_core.launch.cli", "ff_core.agent.agent_main", "torch.distributed.run", "forced_intervals.py")
#: What a module may have asked for when it was imported: a process with another value is not forked.
DECIDES = ("PYTHONPATH", "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "PYTHONWARNINGS", "DS_ACCELERATOR")
_PR_SET_CHILD_SUBREAPER = 36
_LARGEST = 200_000  # bytes of a request: arguments and environment
_KEPT = 3  # descriptors from here on belong to nobody


class Nursery:
    """The side of the process that wants children. control: a socket whose other end `serve` has. pid: of start()'s."""

    pid = 0

    def __init__(self, control: socket.socket) -> None:
        self._control, self._lock = control, threading.Lock()
        self._decides = decides(os.environ)

    @classmethod
    def start(cls, modules: Sequence[str], env: dict[str, str], before: Sequence[str] = ()) -> Nursery:
        """A new process that imports `modules`; it ends when this object goes, or its owner does.

        before: words of a command that runs another one in its place, on another host for instance.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [*before, sys.executable, str(Path(__file__)), str(theirs.fileno()), *modules]
        process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        nursery = cls(ours)
        nursery._decides, nursery.pid = decides(env), process.pid
        if ours.recv(100) != b"ready":
            raise RuntimeError(f"a nursery ended with {process.wait()} before it was ready")
        return nursery

    def takes(self, words: Sequence[Any], env: dict[str, str], **options: Any) -> bool:
        """Whether this is a Python that imports what is there already."""
        unusual = {name for name, value in options.items() if value not in (None, False, "", -1, 0)}
        words = [os.fspath(word) for word in words]
        program = words[1:] if words[1:2] != ["-u"] else words[2:]
        known = program[:1] == ["-m"] or (program and program[0].endswith(".py"))
        return not unusual and words[0] == sys.executable and bool(known) and decides(env) == self._decides

    def spawn(self, words: Sequence[Any], env: dict[str, str], cwd: Any, fds: dict[int, int], session: bool) -> int:
        """A new child of this process; its process id.  fds: number in the child -> ours."""
        answer, end = os.pipe()
        request = {
            "words": [os.fspath(word) for word in words], "env": env, "cwd": os.fspath(cwd or Path.cwd()),
            "numbers": list(fds), "session": session, "parent": os.getpid(), "umask": umask(),
        }  # fmt: skip
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        with self._lock:
            prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the child's parent ends, and this process is the next
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [end, *fds.values()])
                os.close(end)
                text = os.read(answer, 100)
            finally:
                prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
                os.close(answer)
        if not text:
            raise OSError("the nursery is gone")
        return int(text)

    def popen(self, words: Sequence[Any], **options: Any) -> subprocess.Popen[Any]:
        """subprocess.Popen(words, **options), from here if this nursery takes it."""
        nursery = self

        class Forked(subprocess.Popen):
            def _execute_child(self, *args: Any) -> None:
                execute(nursery, self, *args)

        return Forked(words, **options)


def decides(env: Any) -> list[str | None]:
    return [env.get(name) for name in DECIDES]


def umask() -> int:
    now = os.umask(0o22)
    os.umask(now)
    return now


_execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def execute(
    nursery: Nursery, process: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any,
    cwd: Any, env: Any, startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int,
    c2pwrite: int, errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int,
    start_new_session: bool, process_group: int = -1,
) -> None:  # fmt: skip
    """In place of Popen._execute_child, whose arguments these are."""
    wanted = dict(os.environ if env is None else env)
    words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    unusual = {"preexec_fn": preexec_fn, "shell": shell, "gid": gid, "gids": gids, "uid": uid, "umask": umask + 1}
    plain = close_fds and process_group in (-1, None) and executable in (None, words[0])
    if not plain or not nursery.takes(words, wanted, **unusual):
        _execute(
            process, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group,
        )  # fmt: skip
        return
    standard = {number: end if end >= 0 else number for number, end in enumerate((p2cread, c2pwrite, errwrite))}
    fds = {**standard, **{int(fd): int(fd) for fd in pass_fds}}
    process.pid = nursery.spawn(words, wanted, cwd, fds, start_new_session)
    process._child_created = True
    process._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


# ---- in the nursery -------------------------------------------------------------------------------------------------


class Order:
    """What one child is to be."""

    def __init__(self, request: dict[str, Any], fds: list[int]) -> None:
        self.words: list[str] = request["words"]
        self.answer, *self.fds = fds
        self.request = request

        start = 2 if self.words[1] == "-u" else 1
        self.module = self.words[start + 1] if self.words[start] == "-m" else None
        self.program = self.words[start + (self.module is not None) :]

    def starts_others(self) -> bool:
        return Path(self.program[0]).name in PARENTS

    def become(self) -> None:
        """In the new process: what fork leaves of the nursery goes, but for what it has imported."""
        request = self.request
        while os.getppid() != request["parent"]:  # the process between is ending
            time.sleep(0.0005)
        if request["session"]:
            os.setsid()
        highest = 1 + max([_KEPT, self.answer, *self.fds, *request["numbers"]])
        safe = [os.dup2(fd, highest + place, inheritable=False) for place, fd in enumerate(self.fds)]
        answer = os.dup2(self.answer, highest + len(safe), inheritable=False)
        os.closerange(_KEPT, highest)
        for number, fd in zip(request["numbers"], safe, strict=True):
            os.dup2(fd, number, inheritable=True)
        os.write(answer, str(os.getpid()).encode())
        os.closerange(highest, highest + len(safe) + 1)
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        unbuffered = "-u" in self.words[:2]
        for number, (name, mode, buffering) in enumerate((("stdin", "r", -1), ("stdout", "w", -1), ("stderr", "w", 1))):
            file: Any  # open until the process ends
            if unbuffered and mode == "w":
                file = io.TextIOWrapper(open(number, "wb", 0, closefd=False), write_through=True)  # noqa: SIM115
            else:
                file = open(number, mode, buffering, closefd=False)  # noqa: SIM115
            setattr(sys, name, file)
            setattr(sys, f"__{name}__", file)
        sys.orig_argv = list(self.words)

    def run(self) -> None:
        """As `python -m module` or `python script` does, to its end."""
        main = ModuleType("__main__")
        main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
        sys.modules["__main__"] = main
        if self.module is not None:
            sys.argv = ["-m", *self.program[1:]]
            sys.path.insert(0, str(Path.cwd()))
            runpy._run_module_as_main(self.module)  # type: ignore[attr-defined]
            return
        path, sys.argv = self.program[0], list(self.program)
        sys.path.insert(0, str(Path(path).resolve().parent))
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        main.__dict__.update(__file__=path, __cached__=None)
        exec(code, main.__dict__)


def serve(control: socket.socket) -> Order:
    """Forks a process for each request, until the other side is gone. Returns in those processes only."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, _LARGEST, 64)
        if not data:
            os._exit(0)
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)  # so the new process is a child of who asked
            control.close()
            return Order(json.loads(data), fds)
        os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)


def own_nursery() -> Order | None:
    """For a process that starts others: forks its nursery. Returns an order in the processes that come from there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        nursery = Nursery(ours)
        subprocess.Popen._execute_child = lambda process, *args: execute(nursery, process, *args)  # type: ignore[attr-defined]
        return None
    ours.close()
    return quietly(theirs)


def quietly(control: socket.socket) -> Order:
    """Serves, holding no descriptor but `control`, and untouched by what a terminal sends to the group."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(_KEPT):
        os.dup2(nothing, number)
    os.close(nothing)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return serve(control)


def ahead(name: str) -> None:
    """Imports "module" or "module:attribute" (which some packages import when it is asked for), or runs "file.py"."""
    module, _, attribute = name.partition(":")
    if name.endswith(".py"):
        runpy.run_path(name)
    elif attribute:
        getattr(importlib.import_module(module), attribute, None)
    else:
        importlib.import_module(module)


def main() -> None:
    del sys.path[0]  # this file's folder
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        ahead(name)
    gc.collect()
    gc.freeze()  # or each process would look through all that was imported, when it collects garbage
    control.send(b"ready")
    order: Order | None = quietly(control)
    while order is not None:
        last = order
        last.become()
        order = own_nursery() if last.starts_others() else None
    last.run()


if __name__ == "__main__":
    main()
