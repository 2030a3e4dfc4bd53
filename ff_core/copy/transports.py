"""How replicas travel: what this build of the engine has, and which one a job uses."""

from __future__ import annotations

import json

from ff_core.copy.binding import build_info
from ff_core.errors import ConfigError


def available() -> tuple[str, ...]:
    """Names of the engine's transports, the fastest first."""
    return tuple(json.loads(build_info())["transports"])


def choose(wanted: str) -> str:
    """The transport for `wanted`, the configuration's value: "auto" is the fastest there is.

    Raises ConfigError, saying what is missing, for one that this build of the engine does not have.
    """
    have = available()
    if wanted == "auto":
        return have[0]
    if wanted not in have:
        raise ConfigError(
            f"transport = {wanted!r}: this build of the copy engine has {', '.join(have)}; "
            "allowed: one of these, or auto"
        )
    return wanted
