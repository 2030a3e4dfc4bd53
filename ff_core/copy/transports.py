"""How replicas travel: what this machine and this build of the engine have, and which of it a job may use.

shm: between processes of one host, the holder copies out of the sender's memory file.  tcp: anywhere.  ucx: through
libucx, loaded at run time: RDMA on clusters that have it.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass, field
from typing import Literal

from ff_core.copy.binding import build_info, check, engine
from ff_core.errors import ConfigError, EngineError

_RDMA = b"/sys/class/infiniband"


def missing_for_ucx() -> str:
    """What keeps this process from using UCX; "" if nothing does."""
    try:
        check(engine().ff_ucx_check())
    except EngineError as error:
        return str(error)
    return ""


def rdma_ports(root: bytes = _RDMA) -> str:
    """The ports of this host's RDMA devices that are up, "mlx5_0:1 mlx5_1:1"; "" if there are none."""
    found: bytes = engine().ff_rdma_ports(root)
    return found.decode()


def candidates(wanted: str) -> tuple[str, ...]:
    """The transports to try, the best first, for `wanted`, the configuration's value.

    "auto" means those that need no thought. So it leaves UCX out: over an ordinary network UCX is slower than this
    engine's own TCP. And whether two hosts' RDMA ports reach each other is not known before it has been tried. Raises
    ConfigError for one that cannot be had; the error says what is missing.
    """
    have = tuple(json.loads(build_info())["transports"])
    if wanted == "auto":
        return tuple(name for name in have if name != "ucx")
    if wanted not in have:
        raise ConfigError(
            f"transport = {wanted!r}: this build of the copy engine has {', '.join(have)}; "
            "allowed: one of these, or auto"
        )
    if wanted == "ucx" and (missing := missing_for_ucx()):
        raise ConfigError(f"transport = 'ucx': {missing}; allowed without it: auto, shm, tcp")
    return (wanted,)


def advice(wanted: str) -> str:
    """What the user may want to know of the choice; "" if there is nothing."""
    ports = rdma_ports() if wanted == "auto" else ""
    return f'RDMA ports are up ({ports}): "transport": "ucx" uses them' if ports and not missing_for_ucx() else ""


def listens_shared(wanted: str, emulated: bool) -> bool:
    """Whether an agent offers shared memory to the others of its host.

    emulated: the nodes of the job stand for different hosts although they share one; the automatic choice treats them
    as what they stand for.
    """
    return "shm" in candidates(wanted) and (wanted == "shm" or not emulated)


_MOST_STREAMS, _MOST_COPIERS = 8, 4


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """How many TCP streams a connection gets, and how many threads copy out of a peer's shared memory.

    wanted: the configuration's.  ranks: of this node.  world: of the job; between processes of one host all of them may
    share its cores.  holders: of every rank, to which it sends at once.  cores: that this process may use.

    Every stream and every copying thread keeps a core busy at either end, and every rank sends and is sent to. Together
    they shall have no more threads than there are cores. That is what "auto" opens; it carries versions over as few of
    them as turn out to be worth it (`adaptive`).
    """

    wanted: int | Literal["auto"] = "auto"
    ranks: int = 1
    world: int = 1
    holders: int = 1
    cores: int = field(default_factory=_usable_cores)

    @property
    def adaptive(self) -> bool:
        return self.wanted == "auto"

    @property
    def copiers(self) -> int:
        """Threads for a connection through shared memory."""
        return self._share(self.world, _MOST_COPIERS)

    def count(self, near: str, far: str) -> int:
        """For a connection between these two addresses."""
        if self.wanted != "auto":
            return self.wanted
        here = near == far or ipaddress.ip_address(far.partition("%")[0]).is_loopback
        return self._share(self.world if here else self.ranks, _MOST_STREAMS)

    def _share(self, ranks: int, most: int) -> int:
        return max(1, min(most, self.cores // (2 * max(1, ranks) * max(1, self.holders))))
