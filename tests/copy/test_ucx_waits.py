"""UCX: what ends its waits, and what is said when two hosts do not find each other. A libucp that stands before the
real one (ucx_shim.cpp) does what the real one does only on a broken network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ff_core.copy.binding import CopyCancelled
from ff_core.csrc import build
from ff_core.errors import EngineError
from tests.copy.frames import receive
from tests.copy.rig import UCX, Rig, tcp_pair, ucx_pair
from tests.copy.test_ucx import HOLDER

pytestmark = UCX
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shim") / "libucp_shim.so"
    source = ROOT / "tests/csrc/ucx_shim.cpp"
    real = Path(os.environ.get("FF_UCX_LIBRARY", "libucp.so.0"))
    place = [str(real), f"-Wl,-rpath,{real.parent}"] if real.is_absolute() else [f"-l:{real}"]
    flags = ["-std=c++17", "-shared", "-fPIC", f"-I{build.SOURCE_DIR}", "-Wl,--no-as-needed"]
    command = [*build.compiler(), *flags, str(source), "-o", str(out), *place]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def script(*lines: str) -> str:
    return "\n".join(
        (
            "import time",
            "from ff_core.errors import EngineError",
            "from tests.copy.rig import CHUNK, Rig, eventually, tcp_pair, ucx_pair",
            "from tests.copy.test_ucx import Between",
            *lines,
        )
    )


def run(code: str, **environment: str) -> str:
    """What the script prints; a hang fails."""
    words = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


BUSY = {
    "versions": """
with Rig(sent=400_000) as rig:
    rig.connect(1, [ucx_pair])
    for version in range(3):
        rig.run(version % 2, 1, version)
""",
    "cancel of a send that the holder does not take": """
with Rig(sent=20_000_000, stall_timeout_s=600) as rig:
    between = Between(rig, 1, 1, hold=True)
    rig.writer.add_holder(between.near.detach(), "ucx")
    rig.writer.begin(0, 1, 0)
    rig.writer.wait_copied(0, 60)
    rig.writer.cancel()
    between.close()
""",
    "stall of a send that the holder does not take": """
with Rig(sent=20_000_000, stall_timeout_s=0.5) as rig:
    between = Between(rig, 1, 1, hold=True)
    rig.writer.add_holder(between.near.detach(), "ucx")
    rig.writer.begin(0, 1, 0)
    eventually(lambda: rig.writer.stats().holders_lost == 1)
    rig.writer.cancel()
    between.close()
""",
    "retire while data are missing": """
with Rig(sent=20_000_000, bandwidth_bytes_per_s=2_000) as rig:
    between = Between(rig, 4, 1, hold=True)  # ADDRESS, BEGIN, CHUNK, and the next one's header
    rig.writer.add_holder(between.near.detach(), "ucx")
    rig.writer.begin(0, 1, 0)
    eventually(lambda: rig.receiver.poll()[0].bytes > CHUNK)
    time.sleep(0.2)
    rig.receiver.retire_before(2)
    rig.writer.cancel()
    between.close()
""",
    "retire between frames": """
with Rig() as rig:
    rig.connect(1, [ucx_pair])
    rig.run(0, 1, 0)
    rig.receiver.retire_before(2)
""",
}


@pytest.mark.parametrize("case", BUSY)
def test_there_is_always_something_to_do(shim: Path, case: str) -> None:
    """A peer that floods: UCX never says that it has nothing to do. Everything goes on, and every wait ends."""
    run(script(BUSY[case]), FF_UCX_LIBRARY=str(shim), FF_SHIM="busy")


SENDER = """
import sys
from ff_core.errors import EngineError
from tests.copy.rig import Rig

with Rig(sent=20_000) as rig:
    try:
        rig.writer.add_holder(int(sys.argv[1]), "ucx")
    except EngineError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        print("connected")
"""


def introduced(sender: dict[str, str], holder: dict[str, str]) -> str:
    """What a sender says, in a process of its own with this environment, of a holder in another."""
    near, far = tcp_pair()
    words = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(far.fileno())],
        pass_fds=[far.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**words, **holder},
    )
    far.close()
    try:
        assert process.stdout is not None and process.stdout.readline(), "the holder did not start"
        command = [sys.executable, "-c", SENDER, str(near.fileno())]
        words |= sender
        done = subprocess.run(command, pass_fds=[near.fileno()], env=words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
    finally:
        process.kill()
        process.communicate()
        near.close()


def test_two_hosts_without_a_common_transport() -> None:
    posix = {"UCX_TLS": "posix", "UCX_POSIX_ERROR_HANDLING": "y"}
    said = introduced(posix, {"UCX_TLS": "tcp"})
    assert said.startswith("TransportError: UCX cannot connect the two hosts: ")
    assert "this host has UCX_TLS=posix" in said
    assert said.endswith('without UCX: "transport": "auto" or "tcp"')
    assert introduced({"UCX_TLS": "tcp"}, {"UCX_TLS": "tcp"}) == "connected"


def test_sender_finds_no_way(shim: Path) -> None:
    """What a firewall does to UCX's own connections."""
    said = introduced({"FF_UCX_LIBRARY": str(shim), "FF_SHIM": "unreachable", "UCX_TLS": "tcp"}, {})
    assert said.startswith("TransportError: UCX cannot connect the two hosts: UCX lost the peer: ")
    assert "this host has UCX_TLS=tcp" in said


def test_holder_finds_no_way(shim: Path) -> None:
    said = introduced({}, {"FF_UCX_LIBRARY": str(shim), "FF_SHIM": "no-endpoint", "UCX_TLS": "tcp"})
    assert said.startswith("TransportError: the holder refused UCX: UCX cannot connect the two hosts: no endpoint: ")
    assert "the holder has UCX_TLS=tcp; this host has UCX_TLS=" in said


def test_holder_that_is_gone_is_no_question_of_the_transport(shim: Path) -> None:
    """UCX may notice it before the socket does."""
    code = script(
        "with Rig(sent=20_000) as rig:",
        "    between = Between(rig, 99, 1)",
        "    try:",
        "        rig.writer.add_holder(between.near.detach(), 'ucx')",
        "    except EngineError as error:",
        "        print(f'{type(error).__name__}: {error}')",
        "    between.close()",
    )
    said = run(code, FF_UCX_LIBRARY=str(shim), FF_SHIM="unreachable")
    assert said.startswith("EngineError: connection closed by the peer")


def test_a_new_epoch_waits_for_no_worker_to_be_made(shim: Path) -> None:
    """What it needs was made ahead, after the second version: connecting needs no new ones."""
    code = script(
        "import os",
        "with Rig(sent=20_000, holders=2) as rig:",
        "    for epoch in range(1, 4):",
        "        rig.connect(epoch, [ucx_pair])",
        "        os.environ.pop('FF_SHIM', None)",
        "        for version in range(3):",
        "            rig.run(version % 2, epoch, version)",
        "        rig.writer.cancel()",
        "        rig.receiver.retire_before(epoch + 1)",
        "        os.environ['FF_SHIM'] = 'no-worker'",
    )
    run(code, FF_UCX_LIBRARY=str(shim))


class Adding:
    """A sender that connects to a holder, which is `far`."""

    def __init__(self, rig: Rig) -> None:
        self.near, self.far = tcp_pair()
        self.caught: list[BaseException] = []
        self._rig, self._thread = rig, threading.Thread(target=self._add)
        self._thread.start()
        address = receive(self.far)
        assert address is not None
        self.address = address  # its token, and of the port that it works once the answer is there

    def _add(self) -> None:
        try:
            self._rig.writer.add_holder(self.near.detach(), "ucx")
        except BaseException as error:
            self.caught.append(error)

    def cancel(self) -> None:
        self._rig.writer.cancel()
        self._thread.join(60)
        self.far.close()
        assert len(self.caught) == 1 and isinstance(self.caught[0], CopyCancelled), self.caught


@pytest.mark.parametrize("answered", [False, True], ids=["silent", "answering"])
def test_cancel_ends_the_wait_for_a_holder(answered: bool) -> None:
    """A halt may come while a holder is being connected to: it does not wait for the 10 s that this may take."""
    with Rig(sent=20_000) as rig, Rig(sent=20_000) as other:
        adding = Adding(rig)
        if answered:  # by a port that nobody works: of another sender, which waits for its own answer
            idle = Adding(other)
            answer = adding.address.but(data=adding.address.data[:8] + idle.address.data[8:])
            adding.far.sendall(answer.encode())
            time.sleep(0.2)  # so that it waits for UCX
            adding.cancel()
            idle.cancel()
        else:
            adding.cancel()
        assert rig.writer.stats().holders == 0
        rig.connect(2, [ucx_pair])
        rig.run(0, 2, 0)


def test_connections_that_break_while_they_are_made_cost_nothing() -> None:
    """More often than ports can be put aside, see UcxPort::is_stuck()."""
    with Rig(sent=20_000) as rig:
        for epoch in range(1, 70):
            near, far = tcp_pair()
            rig.receiver.attach(far.detach(), rig.holders[0], epoch, "ucx")
            thief, sender = socket.socketpair()
            thread = threading.Thread(target=_add_in_vain, args=(rig, sender))
            thread.start()
            address = receive(thief)
            assert address is not None
            near.sendall(address.encode())
            assert receive(near) is not None, "the holder's ADDRESS"
            near.close()
            thief.close()
            thread.join(60)
            rig.receiver.retire_before(epoch + 1)
        rig.connect(70, [ucx_pair])
        rig.run(0, 70, 0)


def _add_in_vain(rig: Rig, sender: socket.socket) -> None:
    with pytest.raises(EngineError):
        rig.writer.add_holder(sender.detach(), "ucx")
