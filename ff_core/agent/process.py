"""One worker process as its agent sees it: started in its own session, waited for, killed with all its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ff_core.agent import process_group
from ff_core.agent.interfaces import Process
from ff_core.agent.output import OutputPump
from ff_core.agent.stacks import Stacks
from ff_core.agent.vitals import Vitals
from ff_core.contract import stacks
from ff_core.contract.lifeline import PARENT_VARIABLE


class WorkerProcess(Process):
    """A child process that leads its own session and process group. Made by `spawn`, in the event loop's thread.

    After its end it stays a zombie until `close`, or until this object goes. So its process id means this worker's
    group for as long as one may want to kill the group, and never a stranger's. When `wait` returns, all of the
    worker's threads are gone and its memory is unmapped.
    """

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, asked: Stacks) -> None:
        self.pid = process.pid
        self._stacks, self._vitals = asked, Vitals(process.pid, lambda: process_group.members(process.pid))
        self._process = process
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._drained = asyncio.Event()
        self._output: OutputPump | None = None
        self._reaped = False

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], env: Mapping[str, str], *, rank: int | None, log_dir: Path | None, show: bool,
        prefix: bool, pass_fds: Sequence[int],
    ) -> WorkerProcess:  # fmt: skip
        """Start `argv` with exactly the environment `env` (and the name of its parent: see lifeline).

        rank: the rank it plays; None for a spare, until `set_rank`.
        log_dir: where rank<R>/stdout.log and stderr.log go, None for no files.
        show, prefix: whether its lines appear on our stdout and stderr, and with "[<rank>]: ".
        pass_fds: descriptors it inherits under the same numbers; all others are closed, stdin is empty.
        Raises OSError if it cannot be started or a log file cannot be opened.
        """
        # Forked in this thread and not in an executor's: the kernel ties a child's parent-death signal to the thread.
        asked = Stacks()
        process = subprocess.Popen(
            argv,
            env={**env, PARENT_VARIABLE: str(os.getpid()), stacks.VARIABLE: str(asked.fd)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(*pass_fds, asked.fd),
            start_new_session=True,
        )
        try:
            worker = cls(process, os.pidfd_open(process.pid), asked)
            worker._start(rank, log_dir, show, prefix)
        except BaseException:
            process.kill()
            process.wait()
            asked.close()
            raise
        return worker

    def _start(self, rank: int | None, log_dir: Path | None, show: bool, prefix: bool) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        stdout, stderr = (os.dup(pipe.fileno()) for pipe in (self._process.stdout, self._process.stderr))
        self._process.stdout.close()
        self._process.stderr.close()
        try:
            self._output = OutputPump(
                self.pid, stdout, stderr, rank=rank, log_dir=log_dir, show=show, prefix=prefix, drained=self._on_drained
            )
        except BaseException:
            for fd in (stdout, stderr, self._pidfd):
                os.close(fd)
            raise
        self._loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert info is not None
        self._exited.set_result(info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)
        assert self._output is not None
        self._output.process_ended()

    def _on_drained(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._drained.set)

    @property
    def returncode(self) -> int | None:
        """As `wait` gives it; None while the process runs."""
        return self._exited.result() if self._exited.done() else None

    async def wait(self) -> int:
        """Wait for the end of the process, not of its descendants or its output: exit code, or minus the signal."""
        return await asyncio.shield(self._exited)

    async def drained(self, timeout_s: float = 5.0) -> bool:
        """After the end: wait until all its output has been passed on. False if our own stdout takes it too slowly."""
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def kill_group(self, sig: int) -> None:
        """Send `sig` to the process and those descendants that stayed in its group (DataLoader workers do). SIGKILL
        spares those that clean /dev/shm up after the others, and then end.

        Also after its end, when only they are left; then SIGKILL leaves nothing to wait for, and closes.
        Nothing happens after `close`.
        """
        if self._reaped:
            return
        if sig == signal.SIGKILL:
            process_group.kill(self.pid)
        else:
            # EPERM: a descendant changed its user; the others were signalled.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, sig)
        if sig == signal.SIGKILL and self._exited.done():
            self.close()

    def set_rank(self, rank: int) -> None:
        """See Process."""
        assert self._output is not None
        self._output.set_rank(rank)

    def still(self, *, moved: bool) -> tuple[float, bool]:
        """See Process."""
        return self._vitals.still(moved=moved)

    async def stacks(self, *, let_go: bool) -> str:
        """See Process."""
        return "it has ended" if self._exited.done() else await self._stacks.ask(self.pid, let_go=let_go)

    def tail(self, n: int) -> list[str]:
        """The last `n` lines of stderr (at most 400 are kept). Complete after `drained`."""
        assert self._output is not None
        return self._output.tail(n)

    def close(self) -> None:
        """Reap the process, which must have ended. Its descendants can no longer be killed afterwards."""
        if not self._reaped:
            if not self._exited.done():
                raise RuntimeError(f"process {self.pid} is still running")
            self._reaped = True
            self._process.wait()
            self._stacks.close()

    def __del__(self) -> None:
        if not self._reaped and self._exited.done() and not self._exited.cancelled():
            self._reaped = True
            self._process.wait()
            self._stacks.close()
