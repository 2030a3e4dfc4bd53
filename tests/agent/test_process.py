"""Real processes: exit codes, descendants, what they inherit and leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ff_core.agent import process_group
from ff_core.agent.process import WorkerProcess
from tests.agent.processes import DEADLINE_S, asynchronous, descriptors, start, state, until


@asynchronous
async def test_exit_codes_and_signals() -> None:
    assert await (await start("raise SystemExit(3)")).wait() == 3
    assert await (await start("pass")).wait() == 0
    killed = await start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert await killed.wait() == -signal.SIGKILL == killed.returncode


@asynchronous
async def test_several_may_wait_and_one_may_give_up() -> None:
    worker = await start("input() if False else __import__('time').sleep(1000)")
    assert worker.returncode is None
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(worker.wait(), 0.05)
    waits = [asyncio.ensure_future(worker.wait()) for _ in range(3)]
    worker.kill_group(signal.SIGTERM)
    assert await asyncio.gather(*waits) == [-signal.SIGTERM] * 3


@asynchronous
async def test_own_session_and_descriptors(tmp_path: Path) -> None:
    kept, other = os.pipe(), os.pipe()
    for fd in (*kept, *other):
        os.set_inheritable(fd, True)
    code = f"""if True:
        import os
        assert os.getsid(0) == os.getpgid(0) == os.getpid()
        assert os.read(0, 1) == b""
        assert int(os.environ["FF_PARENT_PID"]) == os.getppid()
        os.write({kept[1]}, b"x")
        try:
            os.fstat({other[1]})
        except OSError:
            raise SystemExit(0)
        raise SystemExit("inherited too much")
    """
    worker = await start(code, pass_fds=(kept[1],))
    assert await worker.wait() == 0, worker.tail(10)
    assert os.read(kept[0], 1) == b"x"
    for fd in (*kept, *other):
        os.close(fd)


ORPHAN = """if True:
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    print(child.pid)
    os._exit(5)
"""


@asynchronous
async def test_orphan_holding_the_pipes_delays_nothing_and_dies_with_the_group(tmp_path: Path) -> None:
    worker = await start(ORPHAN, log_dir=tmp_path)
    assert await worker.wait() == 5
    assert await worker.drained(DEADLINE_S)
    orphan = int((tmp_path / "rank0" / "stdout.log").read_text())
    assert state(orphan) not in ("", "Z")
    assert state(worker.pid) == "Z"
    worker.kill_group(signal.SIGKILL)
    await until(lambda: state(orphan) in ("", "Z"))
    assert state(worker.pid) == ""
    worker.kill_group(signal.SIGKILL)  # nothing there any more, and no harm


@pytest.mark.parametrize("way", ["the rank is killed", "the group is killed"])
def test_a_killed_group_leaves_nothing_in_shared_memory(way: str) -> None:
    """Named semaphores and shared memory of the process and its child go; somebody else's stay."""
    code = """if True:
        import multiprocessing, os, time
        from multiprocessing import shared_memory
        context = multiprocessing.get_context("spawn")
        locks = [context.Lock() for _ in range(3)]
        memory = shared_memory.SharedMemory(create=True, size=100)
        child = os.fork()
        if child == 0: time.sleep(1000)
        names = ["sem." + lock._semlock.name.lstrip("/") for lock in locks] + [memory.name]
        print(child, *names, flush=True)
        time.sleep(1000)
    """

    @asynchronous
    async def body() -> None:
        worker = await start(code, log_dir=Path(place))
        log = Path(place) / "rank0" / "stdout.log"
        await until(lambda: log.exists() and log.read_text().endswith("\n"))
        child, *names = log.read_text().split()
        files = [Path("/dev/shm") / name for name in names]
        assert all(file.exists() for file in files) and len(files) == 4
        if way == "the rank is killed":
            os.kill(worker.pid, signal.SIGKILL)
            await worker.wait()
        worker.kill_group(signal.SIGKILL)
        await worker.wait()
        await until(lambda: state(int(child)) in ("", "Z"))
        await until(lambda: not any(file.exists() for file in files))
        await until(lambda: all(state(pid) in ("", "Z") for pid in process_group.members(worker.pid)))

    with tempfile.TemporaryDirectory() as place, tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="sem.mp-") as other:
        body()
        assert Path(other.name).exists()


@asynchronous
async def test_orphan_goes_on_writing_until_killed(tmp_path: Path) -> None:
    code = """if True:
        import os, time
        if os.fork():
            os._exit(0)
        while True:
            print("orphan", flush=True)
            time.sleep(0.01)
    """
    worker = await start(code, log_dir=tmp_path)
    assert await worker.wait() == 0
    log = tmp_path / "rank0" / "stdout.log"
    await until(lambda: log.read_text().count("orphan") > 3)
    worker.kill_group(signal.SIGKILL)
    assert worker.returncode == 0


@asynchronous
async def test_close_and_disappearance_reap() -> None:
    worker = await start("import time; time.sleep(1000)")
    with pytest.raises(RuntimeError, match="still running"):
        worker.close()
    worker.kill_group(signal.SIGKILL)
    await worker.wait()
    assert state(worker.pid) == "Z"
    worker.close()
    assert state(worker.pid) == ""
    forgotten = await start("pass")
    await forgotten.wait()
    await forgotten.drained(DEADLINE_S)
    pid = forgotten.pid
    del forgotten
    await until(lambda: state(pid) == "")


@asynchronous
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async def life(number: int) -> None:
        worker = await start("print('x')", log_dir=tmp_path, rank=number)
        await worker.wait()
        await worker.drained(DEADLINE_S)
        worker.kill_group(signal.SIGKILL)

    def pumps() -> int:
        return sum(thread.name.startswith("ff-output") for thread in threading.enumerate())

    await life(0)
    await until(lambda: pumps() == 0)
    before = descriptors()
    for number in range(5):
        await life(number)
    await until(lambda: pumps() == 0)
    assert descriptors() == before


@asynchronous
async def test_what_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await WorkerProcess.spawn(
            ["/nowhere/program"], {}, rank=0, log_dir=None, show=False, prefix=False, pass_fds=()
        )  # fmt: skip
    (tmp_path / "rank0").write_text("a file where the directory should be")
    before = descriptors()
    with pytest.raises(OSError):
        await start("import time; time.sleep(1000)", log_dir=tmp_path)
    assert descriptors() == before


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """The parent is killed; its worker, which asked to, follows."""
    code = f"""if True:
        import asyncio, os, sys
        from pathlib import Path
        from ff_core.agent.process import WorkerProcess
        child = "from ff_core.contract.lifeline import *; die_with_parent(); print('up'); import time; time.sleep(999)"
        async def main():
            worker = await WorkerProcess.spawn([sys.executable, "-u", "-c", child], dict(os.environ), rank=0,
                                               log_dir=Path({str(tmp_path)!r}), show=True, prefix=False, pass_fds=())
            print(worker.pid, flush=True)
            await worker.wait()
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        while state(pid) not in ("", "Z"):
            time.sleep(0.01)


def test_a_worker_whose_parent_is_dead_already_ends() -> None:
    env = {**os.environ, "FF_PARENT_PID": "1" if os.getpid() != 1 else "2"}
    code = "from ff_core.contract.lifeline import die_with_parent; die_with_parent(); print('alive')"
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL and process.stdout == b""
