"""What real processes write: lines with the rank in front, logs, the end of stderr, a reader that is slow."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import DEADLINE_S, asynchronous, start, until


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
