"""A worker process, `python -m ff_core.worker.worker_main`: waits for its rank, then is the user's script.

The agent starts it with a link (see ff_core.contract.link). A spare first imports what a live rank has imported; a
rank's process gets its rank at once. With FF_DEBUG set, a spare says on stderr how long that took and what it skipped.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ff_core.contract import stacks
from ff_core.contract.lifeline import die_with_parent
from ff_core.contract.link import LINK_VARIABLE, WorkerLink
from ff_core.contract.messages import BEFORE_ROLE
from ff_core.errors import ProtocolError
from ff_core.worker import endings, garbage, preload, script
from ff_core.worker.hooks import default_hooks

if TYPE_CHECKING:
    from ff_core.contract.messages import Message

_NOTHING_CALLED = (
    "fftrain: THIS JOB WAS NOT PROTECTED: --no-import-hooks was given, and nothing that the script imported called "
    "FFTrainer. Patch DeepSpeed or Megatron-LM (`fftrain patch --help`), or import ff_deepspeed in the script."
)


def main() -> int:
    """Be one worker, from start to exit code. Ends quietly with 0 if the agent goes before there is a rank to play."""
    die_with_parent()
    faulthandler.enable()  # a crash in a library leaves the stacks among the rank's last words
    stacks.answer()
    environ, directory = dict(os.environ), Path.cwd()
    _leave_working_directory()
    link = WorkerLink.from_env()
    if link is None:
        print("worker_main is started by fftrain's agent: there is no link in the environment", file=sys.stderr)
        return 2
    try:
        role, fds = wait_for_role(link, lambda: _start_afresh(environ, directory))
    except (EOFError, KeyboardInterrupt):
        return 0
    os.environ.update(role["env"])
    preload.remember_environment()
    # torch's @record and our own report write here; neither makes the directory.
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        Path(error_file).parent.mkdir(parents=True, exist_ok=True)
    if role["no_python"]:
        _execute(role["entrypoint"])
    return _run(link, role, fds)


def _leave_working_directory() -> None:
    """Undo what `python -m` did to sys.path: nothing in the working directory may pass for a library.

    If this package itself was found there only (a source tree that is not installed), its place goes to the end.
    """
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 has no safe path
        del sys.path[0]
    root = str(Path(__file__).resolve().parents[2])
    if root not in map(os.path.realpath, sys.path):
        sys.path.append(root)


def _start_afresh(environ: Mapping[str, str], directory: Path) -> NoReturn:
    """Be the process again that the agent started, with nothing imported. The link, its waiting messages, our number
    and the tie to our parent stay."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(directory)
    os.set_inheritable(int(environ[LINK_VARIABLE]), True)
    stacks.keep_for(environ)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def wait_for_role(link: WorkerLink, start_afresh: Callable[[], NoReturn]) -> tuple[Message, list[int]]:
    """Do what a spare is told until the message "role" comes; returns that message and its descriptors.

    start_afresh() is called in a spare that cannot become a rank as it is, once the agent has been told.
    Raises EOFError when the agent is gone, ProtocolError for a message that does not belong here.
    """
    while True:
        message, fds = link.receive(None)
        if message["t"] == "role":
            return message, fds
        if message["t"] == "chosen":
            if _keep_device(message["local_rank"]):
                link.send("device_has_room")
            continue
        if message["t"] != "preload":
            raise ProtocolError(f"message {message['t']!r} before a role; allowed: {', '.join(sorted(BEFORE_ROLE))}")
        result = preload.run(
            message["modules"], message["calls"], link.pending,
            argv=message.get("argv") or (), without=message.get("without") or (), changed=message.get("environ"),
            settings=message.get("settings"), paths=message.get("paths") or (),
        )  # fmt: skip
        if os.environ.get("FF_DEBUG"):
            print(f"fftrain: spare ready in {result.seconds:.2f} s: {result.imported} modules, {result.called} calls, "
                  f"skipped {result.skipped}, unfit {result.unfit}", file=sys.stderr, flush=True)  # fmt: skip
        if result.unfit:
            link.send("spare_unfit", uid=os.environ["FF_UID"], reasons=result.unfit)
            start_afresh()
        garbage.leave_out()
        link.send("spare_ready", uid=os.environ["FF_UID"])


def _keep_device(local_rank: int) -> bool:
    """In a spare that is going to be a rank: other devices are given back before the script puts anything there.

    Returns whether its own device has room enough to begin at once.
    """
    warm_device = sys.modules.get("ff_core.worker.warm_device")  # not imported: nothing was made on a device
    begun = time.perf_counter()
    has_room = warm_device is not None and warm_device.keep(local_rank)
    if os.environ.get("FF_DEBUG"):
        print(f"fftrain: other devices given back in {time.perf_counter() - begun:.3f} s", file=sys.stderr, flush=True)
    return has_room


def _run(link: WorkerLink, role: Message, fds: list[int]) -> int:
    from ff_core.worker import boot

    sys.argv = list(role["entrypoint"])
    session = boot.boot(link, role, fds)
    if role["job"]["import_hooks"]:
        default_hooks()
    failure: BaseException | None = None
    try:
        with endings.noticed(lambda: boot.shutdown(None)):
            script.run_as_main(role["entrypoint"])
    except BaseException as error:
        failure = error
    code = 0
    if failure is not None:
        code = script.report_exception(failure)
        script.write_error_file(failure)
    if session.registry is None and not role["job"]["import_hooks"] and session.rank == 0:
        print(_NOTHING_CALLED, file=sys.stderr, flush=True)
    boot.shutdown(failure if code else None)
    if isinstance(failure, KeyboardInterrupt):
        # A parent must see that it was the signal, as with any Python program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _execute(argv: list[str]) -> None:
    print(f"fftrain: --no-python: {argv[0]} runs without protection", file=sys.stderr, flush=True)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"fftrain: cannot run {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


if __name__ == "__main__":
    # Imported again under its own name: __main__ is about to become the user's.
    from ff_core.worker.worker_main import main as _main

    sys.exit(_main())
