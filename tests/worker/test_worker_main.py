"""A worker process with the test as its agent: a real link and a real status page, no control plane behind them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ff_core.contract.env import spare_env
from ff_core.contract.job import JobSpec
from tests.nursery import Nursery
from tests.worker.one_worker import Agent


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    """Of workers for which torch has been imported."""
    return Nursery.start(["torch"], spare_env())


@pytest.fixture
def agent(tmp_path: Path, nursery: Nursery) -> Iterator[Agent]:
    agent = Agent(tmp_path, nursery)
    yield agent
    agent.close()


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Agent]:
    """Its worker starts as under a real agent, with nothing imported."""
    agent = Agent(tmp_path)
    yield agent
    agent.close()


def test_is_the_script_with_its_ranks_environment(cold: Agent) -> None:
    code, out, err = cold.run(
        """
        import os, sys
        print(__name__, sys.argv, os.environ["RANK"], os.environ["WORLD_SIZE"], sys.path[0] == os.getcwd())
        print([name for name in os.environ if name.startswith("FF_PARENT") or name == "FF_LINK_FD"])
        print("deepspeed" in sys.modules)
        """,
        "--x",
    )
    assert (code, err) == (0, "")
    assert out.splitlines() == ["__main__ ['train.py', '--x'] 1 2 True", "[]", "False"]
    assert cold.receive()["t"] == "booted"


def test_traceback_without_our_frames_and_error_file(agent: Agent) -> None:
    code, _, err = agent.run("def f():\n    raise ValueError('bad')\nf()\n")
    assert code == 1
    files = [line.split('"')[1] for line in err.splitlines() if line.startswith("  File")]
    assert files == [str(agent.place / "train.py")] * 2
    assert err.endswith("ValueError: bad\n")
    record = json.loads((agent.place / "logs" / "0" / "rank1" / "error.json").read_text())
    assert record["message"]["message"] == "ValueError: bad"


@pytest.mark.parametrize(("ending", "expected"), [("exit(0)", 0), ("exit(5)", 5), ("exit('words')", 1), ("pass", 0)])
def test_exit_codes(agent: Agent, ending: str, expected: int) -> None:
    assert agent.run(ending)[0] == expected


@pytest.mark.parametrize(
    ("newcomer", "error"), [(True, "FailoverError"), (False, "FailoverError"), (True, "ValueError")]
)
def test_a_replacement_that_cannot_go_on_says_so(agent: Agent, newcomer: bool, error: str) -> None:
    """Not a rank of the first start, and not for an error of the script's own."""
    code = f"from ff_core.errors import FailoverError\nraise {error}('starts from the beginning')"
    agent.give_role(["train.py"], code, newcomer=newcomer, epoch=3)
    assert agent.end()[0] == 1 and agent.receive()["t"] == "booted"
    if newcomer and error == "FailoverError":
        said = {"t": "unresumable", "rank": 1, "epoch": 3, "reason": "starts from the beginning"}
        assert agent.receive() == said
    with pytest.raises((EOFError, OSError)):
        agent.receive()


ENDS = {
    "os._exit": "os._exit(0)",
    "by name": "from os import _exit; _exit(0)",
    "execv": "os.execv('/bin/echo', ['echo', 'became'])",
    "execlp": "os.execlp('echo', 'echo', 'became')",
    "not found, then": "try: os.execv('/nowhere', ['x'])\nexcept OSError: os._exit(0)",
    "after a forked child's": "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)\nos._exit(0)",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_ends_that_pass_pythons_by_are_ends_of_the_script(agent: Agent, end: str) -> None:
    """What was registered for the script's end is done, once."""
    code = "import os\nfrom ff_core.worker import boot\nfrom ff_core.worker.session import current\n"
    code += "current().at_end(lambda: print('ended', flush=True))\n"
    status, out, err = agent.run(code + end)
    assert status == 0, err
    assert out.splitlines() == ["ended"] + ["became"] * ("exec" in end and "nowhere" not in end)


def test_an_end_that_fails_is_told(agent: Agent) -> None:
    code = """
        import os
        from ff_core.worker.session import current
        def fail(): raise RuntimeError("too early")
        current().at_end(fail)
        os._exit(0)
    """
    status, _, err = agent.run(code)
    assert status == 1 and "RuntimeError: too early" in err


THREAD = "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(60)"


@pytest.mark.parametrize("end", ["os._exit(3)", THREAD], ids=["code", "thread"])
def test_other_ends_are_not(agent: Agent, end: str) -> None:
    code = "import os, threading, time\nfrom ff_core.worker.session import current\n"
    status, out, _ = agent.run(code + "current().at_end(lambda: print('ended', flush=True))\n" + end)
    assert status == (3 if "3" in end else 0) and out == ""


def test_interrupt_ends_as_with_any_python_program(agent: Agent) -> None:
    code, _, err = agent.run("raise KeyboardInterrupt")
    assert code == -signal.SIGINT and err.endswith("KeyboardInterrupt\n")


def test_module(agent: Agent) -> None:
    agent.give_role(["-m", "train", "a"], "import sys; print(__spec__.name, sys.argv[1:])")
    assert agent.end()[:2] == (0, "train ['a']\n")


def test_spare_preloads_then_plays(cold: Agent) -> None:
    (cold.place / "wave.py").write_text("raise SystemExit('the working directory shadows a library')")
    cold.link.send("preload", modules=["wave", "nowhere_at_all"], calls=[["os:putenv", ["PRELOADED", "1"]]])
    assert cold.receive() == {"t": "spare_ready", "uid": "u1"}
    cold.link.send("preload", modules=["wave"], calls=[])
    assert cold.receive()["t"] == "spare_ready"
    code, out, _ = cold.run("import sys, os; print('wave' in sys.modules, flush=True); os.system('echo $PRELOADED')")
    assert (code, out) == (0, "True\n1\n")


def test_a_spare_that_is_chosen_gives_devices_back_before_it_plays(cold: Agent) -> None:
    """A spare that has made nothing on devices does not even import what would."""
    calls = cold.place / "calls.py"
    calls.write_text(
        "import sys\nfrom ff_core.worker import warm_device\n"
        "warm_device.keep = lambda local_rank: print('keeps', local_rank, flush=True) or local_rank == 3\n"
    )
    cold.link.send("chosen", local_rank=1)
    cold.link.send("preload", modules=[], calls=[["runpy:run_path", [str(calls)]]])
    assert cold.receive()["t"] == "spare_ready"
    cold.link.send("chosen", local_rank=3)
    assert cold.receive() == {"t": "device_has_room"}
    assert cold.run("print('plays', flush=True)")[:2] == (0, "keeps 3\nplays\n")


def test_a_crash_leaves_its_stack(cold: Agent) -> None:
    status, _, err = cold.run("import ctypes\ndef here():\n    ctypes.string_at(0)\nhere()")
    assert status == -signal.SIGSEGV
    assert "Segmentation fault" in err and "in here" in err


@pytest.mark.parametrize("early", [False, True], ids=["when it is ready", "while it imports"])
def test_a_library_that_reads_the_rank_at_import_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Also where the role comes before the spare has found out."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    pause = "import time; print('importing', flush=True); time.sleep(2)" if early else ""
    (libraries / "asks_rank.py").write_text(f"import os\nRANK = os.environ.get('RANK', '0')\n{pause}")
    (libraries / "good.py").write_text("import os\nPID = os.getpid()")
    monkeypatch.setenv("PYTHONPATH", str(libraries))
    agent = Agent(tmp_path)
    try:
        agent.link.send("preload", modules=["good", "asks_rank"], calls=[])
        if early:
            assert agent.process.stdout is not None and agent.process.stdout.readline() == "importing\n"
        else:
            message = agent.receive()
            assert (message["t"], list(message["reasons"])) == ("spare_unfit", ["asks_rank"])
            agent.link.send("preload", modules=["good", "asks_rank"], calls=[], without=["asks_rank"])
            assert agent.receive()["t"] == "spare_ready"
        code = """
            import os, sys
            before = {"good", "asks_rank"} & set(sys.modules)
            import asks_rank, good
            print(sorted(before), "rank", asks_rank.RANK, good.PID == os.getpid(), flush=True)
        """
        status, out, err = agent.run(code)
        assert status == 0, err
        assert out.splitlines()[-1] == f"{[] if early else ['good']} rank 1 True"
    finally:
        agent.process.kill()
        agent.process.wait()


def test_hooks_are_set(cold: Agent) -> None:
    code, out, err = cold.run("""
        import torch.distributed as dist
        from ff_core.worker import session
        print(session.current().registry is not None)
    """)
    assert (code, out) == (0, "True\n"), err


def test_without_import_hooks(agent: Agent) -> None:
    """Nothing watches imports; who calls FFTrainer is protected, and a job in which nobody did is told so."""
    code = """
        import sys, torch.distributed
        from ff_core.worker import session
        print([type(finder).__module__ for finder in sys.meta_path if type(finder).__module__.startswith("ff_")])
        print(session.current().registry is not None)
        """
    job = JobSpec(["train.py"], 1, 2, "127.0.0.1", agent.store.port, import_hooks=False).to_wire()
    agent.give_role(["train.py"], code, job=job, rank=0)
    status, out, err = agent.end()
    assert (status, out) == (0, "[]\nFalse\n")
    assert err.startswith("fftrain: THIS JOB WAS NOT PROTECTED: --no-import-hooks was given")


def test_without_import_hooks_but_called(cold: Agent) -> None:
    job = JobSpec(["train.py"], 1, 2, "127.0.0.1", cold.store.port, import_hooks=False).to_wire()
    # A spare imports what calls FFTrainer before it has a rank: the call takes effect when it has one.
    (cold.place / "calls.py").write_text(
        "from ff_core.worker import boot\nimport torch.distributed\nboot.when_worker(boot.on_torch_distributed)\n"
    )
    cold.link.send("preload", modules=["runpy"], calls=[["runpy:run_path", [str(cold.place / "calls.py")]]])
    assert cold.receive()["t"] == "spare_ready"
    code = "from ff_core.worker import session\nprint(session.current().registry is not None)"
    cold.give_role(["train.py"], code, job=job, rank=0)
    assert cold.end() == (0, "True\n", "")


def test_no_python(agent: Agent) -> None:
    agent.give_role(["sh", "-c", "echo $RANK $0", "word"], no_python=True)
    code, out, err = agent.end()
    assert (code, out) == (0, "1 word\n") and "without protection" in err


def test_no_python_missing_program(agent: Agent) -> None:
    agent.give_role(["/nowhere/program"], no_python=True)
    code, _, err = agent.end()
    assert code == 127 and "cannot run /nowhere/program" in err


def test_agent_gone_before_a_role(agent: Agent) -> None:
    agent.link._sock.shutdown(socket.SHUT_RDWR)
    assert agent.end() == (0, "", "")


def test_agent_gone_while_playing(agent: Agent) -> None:
    agent.give_role(["train.py"], "import time; time.sleep(1000)")
    assert agent.receive()["t"] == "booted"
    agent.link._sock.shutdown(socket.SHUT_RDWR)
    assert agent.end()[0] != 0


def test_a_message_that_does_not_belong(agent: Agent) -> None:
    agent.link.send("regroup", epoch=1)
    code, _, err = agent.end()
    assert code == 1 and "'regroup' before a role; allowed: chosen, preload, role" in err


def test_started_by_hand() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "ff_core.worker.worker_main"], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 2 and "started by fftrain" in process.stderr
