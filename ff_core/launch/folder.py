"""Who has a persist_dir: one job at a time, whatever a scheduler starts again while the old one still lives.

    with held(directory, lost) as ...:

A file in the folder names the launcher that has it, and changes every few seconds. Whoever finds one that still changes
is refused. One that stays as it is was left by a job that lost its power: it counts no more. Clocks are not compared.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ff_core.errors import ConfigError

NAME = "owner.json"
_BEAT_S = 3.0
#: So long a file that nobody removed must stay as it is. A network file system shows changes late.
_STALE_S = 15.0
_LOOK_S = 0.25


@contextmanager
def held(directory: str, lost: Callable[[str], None], *, anyway: bool = False) -> Iterator[None]:
    """Within: this process has `directory`, an existing folder. "": nothing is held.

    lost(reason): called once, in another thread, if another process has taken it.
    anyway: the job is the one that has it, and goes on here.
    Raises ConfigError if another one has it. Waits for up to 15 s to see whether one that left its name still lives.
    """
    if not directory:
        yield
        return
    path = Path(directory) / NAME
    mine = _me()
    if anyway:
        path.unlink(missing_ok=True)
    _claim(path, mine)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, mine, over, lost), name="ff-folder", daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        if (_read(path) or {}).get("id") == mine["id"]:
            path.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
    """A process, so that another one on its machine can see whether it lives. Containers count processes anew."""
    pid, namespace = os.getpid(), Path("/proc/self/ns/pid").readlink()
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": pid,
        "began": psutil.Process(pid).create_time(),
        "machine": [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(namespace)],
        "beat": 0,
    }


def _claim(path: Path, mine: dict[str, Any]) -> None:
    while True:
        try:
            with path.open("x") as file:  # one of two that come at once
                json.dump(mine, file)
            return
        except FileExistsError:
            _refuse_living(path, mine)
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"persist_dir {path.parent} cannot be written to: {error.strerror}") from None


def _refuse_living(path: Path, mine: dict[str, Any]) -> None:
    """Raises ConfigError if whoever has the file lives."""
    first = _read(path)
    lives = None if first is None else _lives_here(first, mine)
    if lives is None:
        print(f"fftrain: {path} is there: waiting up to {_STALE_S:g} s to see whether that job still runs",
              file=sys.stderr, flush=True)  # fmt: skip
        deadline = time.monotonic() + _STALE_S
        while not lives and time.monotonic() < deadline and path.exists():
            time.sleep(_LOOK_S)
            now = _read(path)
            lives = now is not None and now != first
    if lives:
        other = _read(path) or {}
        raise ConfigError(
            f"persist_dir {path.parent} belongs to a job that runs now: its launcher is process {other.get('pid')} on "
            f"{other.get('host')}. Two jobs would write over each other's versions. End that one first, or give "
            "another persist_dir"
        )


def _lives_here(other: dict[str, Any], mine: dict[str, Any]) -> bool | None:
    """Whether a process of this machine lives. None: it is of another one."""
    if other.get("machine") != mine["machine"]:
        return None
    try:
        return bool(psutil.Process(other["pid"]).create_time() == other["began"])
    except (psutil.NoSuchProcess, KeyError):
        return False


def _beat(path: Path, mine: dict[str, Any], over: threading.Event, lost: Callable[[str], None]) -> None:
    new = path.with_name(f"{NAME}.{mine['id'][:8]}")
    while not over.wait(_BEAT_S):
        other = _read(path)
        if other is not None and other["id"] != mine["id"]:
            lost(
                f"another job, of process {other.get('pid')} on {other.get('host')}, has taken persist_dir "
                f"{path.parent}: it saw no sign of this launcher for {_STALE_S:g} s"
            )
            return
        mine["beat"] += 1
        with suppress(OSError):  # a disk that is full or away: versions that are not written are said elsewhere
            new.write_text(json.dumps(mine))
            new.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    """None: it is not there, or not a whole one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "id" in found else None
