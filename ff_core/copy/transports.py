"""How replicas travel: what this build of the engine has, and which of it a job may use.

shm: between processes of one host, the holder copies out of the sender's memory file.  tcp: anywhere.
"""

from __future__ import annotations

import json

from ff_core.copy.binding import build_info
from ff_core.errors import ConfigError


def available() -> tuple[str, ...]:
    """Names of the engine's transports, the fastest first."""
    return tuple(json.loads(build_info())["transports"])


def candidates(wanted: str) -> tuple[str, ...]:
    """The transports to try, the best first, for `wanted`, the configuration's value: "auto" means all there are.

    Raises ConfigError, saying what is missing, for one that this build of the engine does not have.
    """
    have = available()
    if wanted == "auto":
        return have
    if wanted not in have:
        raise ConfigError(
            f"transport = {wanted!r}: this build of the copy engine has {', '.join(have)}; "
            "allowed: one of these, or auto"
        )
    return (wanted,)


def listens_shared(wanted: str, emulated: bool) -> bool:
    """Whether an agent offers shared memory to the others of its host.

    emulated: the nodes of the job stand for different hosts although they share one; the automatic choice treats them
    as what they stand for.
    """
    return "shm" in candidates(wanted) and (wanted == "shm" or not emulated)
