"""Hosts for tests: network namespaces, joined by a bridge in one of their own. Nothing of the machine's own network is
touched. Where namespaces are not permitted, hosts are addresses of the loopback, and the test says so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.nursery import Nursery


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], text=True, capture_output=True, check=True)


#: Then a file and a command: in a mount namespace, which `ip netns exec` makes, the file is the machine's boot id. By
#: that nodes see who shares a machine's memory and devices.
_OTHER_BOOT = ("sh", "-c", 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"')


def permitted() -> bool:
    """Whether namespaces can be made here."""
    name = f"ff{os.getpid()}try"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "add", "name", "sw0", "type", "bridge")
        _ip("-n", name, "link", "add", "va", "type", "veth", "peer", "name", "vb")
        _ip("netns", "exec", name, *_OTHER_BOOT, "/proc/uptime", "true")
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


class Hosts:
    """`count` hosts. real: they are namespaces.  addresses: one each; in the stand-in all launchers share the first."""

    def __init__(self, count: int) -> None:
        self.real = permitted()
        self._base = f"ff{os.getpid()}"
        self._names = [f"{self._base}h{number}" for number in range(count)]
        self._started: list[list[subprocess.Popen[Any]]] = [[] for _ in range(count)]
        self._nurseries: dict[int, Nursery] = {}
        if not self.real:
            self.addresses = [f"127.0.0.{number + 1}" for number in range(count)]
            warnings.warn("network namespaces are not permitted here: the hosts are addresses of one", stacklevel=2)
            return
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        self._boot_ids = Path(tempfile.mkdtemp(prefix="ffhosts"))
        for number in range(count):
            (self._boot_ids / str(number)).write_text(f"{self._base}-{number}\n")
        switch = f"{self._base}sw"
        for name in (switch, *self._names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "name", "sw0", "type", "bridge")
        _ip("-n", switch, "link", "set", "sw0", "up")
        for number, name in enumerate(self._names):
            port = f"v{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", port, "master", "sw0", "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[number]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self._names)):
            self.power_off(number)
        for name in (*self._names, f"{self._base}sw") if self.real else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        if self.real:
            shutil.rmtree(self._boot_ids)

    def words(self, number: int) -> list[str]:
        """What goes before a command that is to run on host `number`."""
        if not self.real:
            return []
        return ["ip", "netns", "exec", self._names[number], *_OTHER_BOOT, str(self._boot_ids / str(number))]

    def start(self, number: int, command: Sequence[str], log: Path, env: dict[str, str]) -> subprocess.Popen[Any]:
        """Run `command` on host `number`; what it prints goes to `log`. A Python of ours is forked there, from one that
        has imported torch."""
        if number not in self._nurseries:
            self._nurseries[number] = Nursery.start(["torch"], env, self.words(number))
        nursery = self._nurseries[number]
        forked = nursery.takes(command, env)
        popen = nursery.popen if forked else subprocess.Popen
        words = command if forked else [*self.words(number), *command]
        with log.open("w") as file:
            process = popen(words, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        self._started[number].append(process)
        return process

    def power_off(self, number: int) -> None:
        """SIGKILL all that runs there."""
        nursery = self._nurseries.pop(number, None)
        if nursery is not None:
            os.kill(nursery.pid, signal.SIGKILL)
            os.waitpid(nursery.pid, 0)
        for _ in range(100):
            pids = self.pids(number)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for process in self._started[number]:
                process.poll()
            if not pids:
                return
            time.sleep(0.05)

    def unplug(self, number: int) -> None:
        """The host's cable is pulled. Real hosts only."""
        _ip("-n", f"{self._base}sw", "link", "set", f"v{number}", "down")

    def plug_in(self, number: int) -> None:
        _ip("-n", f"{self._base}sw", "link", "set", f"v{number}", "up")

    def pids(self, number: int) -> list[int]:
        """The processes on host `number`, without the one that others are forked from."""
        if self.real:
            nursery = self._nurseries.get(number)
            pids = map(int, _ip("netns", "pids", self._names[number]).stdout.split())
            return [pid for pid in pids if nursery is None or pid != nursery.pid]
        found = []
        for process in self._started[number]:
            try:
                one = psutil.Process(process.pid)
                found += [other.pid for other in (one, *one.children(recursive=True)) if other.status() != "zombie"]
            except psutil.NoSuchProcess:
                pass
        return found
