"""Real processes: exit codes, descendants, output, logs."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ff_core.agent import process_group
from ff_core.agent.process import WorkerProcess

DEADLINE_S = 60.0


async def start(
    code: str, *, rank: int | None = 0, log_dir: Path | None = None, show: bool = False, prefix: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> WorkerProcess:  # fmt: skip
    return await WorkerProcess.spawn(
        [sys.executable, "-u", "-c", code], dict(os.environ), rank=rank, log_dir=log_dir, show=show, prefix=prefix,
        pass_fds=pass_fds,
    )  # fmt: skip


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)  # pytest reads the fixtures' names from it
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), DEADLINE_S))

    return run


async def until(condition: Callable[[], Any]) -> None:
    """The test's own deadline ends a wait for something that never happens."""
    while not condition():
        await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def state(pid: int) -> str:
    """R, S, Z...; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


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
async def test_output_with_rank_in_front(capfd: pytest.CaptureFixture[str]) -> None:
    code = r"import sys; print('one\ntwo'); print('bad', file=sys.stderr); print('a\rb\rend', end='')"
    worker = await start(code, rank=3, show=True)
    await worker.wait()
    assert await worker.drained(DEADLINE_S)
    out, err = capfd.readouterr()
    assert out == "[3]: one\n[3]: two\n[3]: a\r[3]: b\r[3]: end\n"
    assert err == "[3]: bad\n"


@asynchronous
async def test_output_plain_or_not_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    for show, expected in ((True, "text\n"), (False, "")):
        worker = await start("print('text')", show=show, prefix=False)
        await worker.wait()
        assert await worker.drained(DEADLINE_S)
        assert capfd.readouterr().out == expected


@asynchronous
async def test_a_spares_lines_and_logs_follow_its_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank2").mkdir()
    (tmp_path / "rank2" / "stdout.log").write_text("of the dead one\n")
    reader, writer = os.pipe()
    code = f"import os; print('waiting'); os.read({reader}, 1); print('playing')"
    worker = await start(code, rank=None, log_dir=tmp_path, show=True, pass_fds=(reader,))
    spare_log = tmp_path / f"spare{worker.pid}" / "stdout.log"
    await until(lambda: spare_log.read_text() == "waiting\n")
    worker.set_rank(2)
    os.write(writer, b"x")
    await worker.wait()
    assert await worker.drained(DEADLINE_S)
    assert (tmp_path / "rank2" / "stdout.log").read_text() == "of the dead one\nplaying\n"
    assert spare_log.read_text() == "waiting\n"
    assert capfd.readouterr().out == "[spare]: waiting\n[2]: playing\n"
    os.close(reader)
    os.close(writer)


@asynchronous
async def test_tail_is_the_end_of_stderr() -> None:
    worker = await start("import sys\nfor n in range(1000): print(n, file=sys.stderr)\n1 / 0")
    assert await worker.wait() == 1
    assert await worker.drained(DEADLINE_S)
    assert worker.tail(1) == ["ZeroDivisionError: division by zero"]
    assert len(worker.tail(10_000)) == 400 and worker.tail(0) == []


@asynchronous
async def test_much_output_arrives_whole(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(20000): print(f'line {n} ' + 'x' * 100)\nsys.stdout.write('y' * 300000)"
    worker = await start(code, log_dir=tmp_path)
    assert await worker.wait() == 0
    assert await worker.drained(DEADLINE_S)
    text = (tmp_path / "rank0" / "stdout.log").read_text()
    expected = "".join(f"line {n} {'x' * 100}\n" for n in range(20000)) + "y" * 300000
    assert text.removesuffix("\n") == expected


@asynchronous
async def test_a_reader_that_does_not_read_stops_only_the_worker() -> None:
    """Our own stdout is full: the event loop goes on, and killing works."""
    reader, writer = os.pipe()
    saved = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        worker = await start("while True: print('x' * 1000)", show=True)
        await asyncio.sleep(0.3)
        worker.kill_group(signal.SIGKILL)
        assert await worker.wait() == -signal.SIGKILL
        assert not await worker.drained(0.05)
        os.close(reader)
        assert await worker.drained(DEADLINE_S)
    finally:
        os.dup2(saved, 1)
        os.close(saved)


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
