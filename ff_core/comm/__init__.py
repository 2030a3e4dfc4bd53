"""Process groups that outlive their connections, and initialisation that talks to nobody.

`install(host, solo=...)` patches torch.distributed once, before the job initialises it; the `GroupRegistry` it returns
then carries all groups from epoch to epoch. What it needs of the process is `CommHost`.
"""

from __future__ import annotations

from .group import SwappableGroup
from .host import ACTIVITY_COLLECTIVE, ACTIVITY_USER, CommHost
from .install import install, installed
from .journal import Journal
from .listener import Listener
from .registry import GroupRegistry

__all__ = [
    "ACTIVITY_COLLECTIVE",
    "ACTIVITY_USER",
    "CommHost",
    "GroupRegistry",
    "Journal",
    "Listener",
    "SwappableGroup",
    "install",
    "installed",
]
