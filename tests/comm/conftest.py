"""A job of one rank in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from ff_core.comm import GroupRegistry, install, installed
from tests.comm.harness import Host


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupRegistry]:
    """Installed and initialised; everything is taken back afterwards."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    registry = install(Host(store.port, 0, 0.0), solo=False)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=20))
        yield registry
    finally:
        registry.halted_epoch = None
        if dist.is_initialized():
            dist.destroy_process_group()
        registry.uninstall()
    assert installed() is None
