"""The agent's end of one worker: a real link and a real status page, no control plane behind them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ff_core.contract.env import spare_env, worker_env
from ff_core.contract.job import JobSpec
from ff_core.contract.link import WorkerLink, pair
from ff_core.contract.messages import AGENT_TO_WORKER, WORKER_TO_AGENT
from ff_core.copy.page import StatusPage
from tests.nursery import Nursery

DEADLINE_S = 60.0


class Agent:
    """The agent's end of one worker."""

    def __init__(self, place: Path, nursery: Nursery | None = None) -> None:
        self.place = place
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a worker connects early
        self.page = StatusPage.create()
        self.bell = os.eventfd(0)
        ours, theirs = pair()
        self.link = WorkerLink(ours, sends=AGENT_TO_WORKER, receives=WORKER_TO_AGENT)  # the same packets both ways
        env = {**spare_env(), "FF_LINK_FD": str(theirs.fileno()), "FF_UID": "u1", "FF_PARENT_PID": str(os.getpid())}
        popen = nursery.popen if nursery else subprocess.Popen
        self.process = popen(
            [sys.executable, "-u", "-m", "ff_core.worker.worker_main"], env=env, cwd=place, pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()

    def give_role(self, entrypoint: list[str], code: str = "", **changes: Any) -> None:
        (self.place / "train.py").write_text(textwrap.dedent(code))
        job = JobSpec(entrypoint, 1, 2, master_addr="127.0.0.1", master_port=self.store.port, out_dir=str(self.place))
        fields = {
            "rank": 1,
            "env": worker_env(job, 1, 0),
            "entrypoint": entrypoint,
            "no_python": False,
            "epoch": 0,
            "newcomer": False,
            "secret": b"x" * 16,
            "job": job.to_wire(),
            "injections": [],
            "world_size": 2,
        }
        self.link.send("role", (self.page.fd, self.bell), **{**fields, **changes})

    def run(self, code: str, *argv: str) -> tuple[int, str, str]:
        self.give_role(["train.py", *argv], code)
        return self.end()

    def end(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def receive(self) -> dict[str, Any]:
        return self.link.receive(DEADLINE_S)[0]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.link._sock.close()
        self.page.close()
        os.close(self.bell)
