"""Who is proven dead, and who is not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ff_core.contract import proof
from ff_core.contract.proof import is_proven_dead


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert asyncio.run(is_proven_dead("127.0.0.1", port))


def test_somebody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # and never accepts: a stopped process
        assert not asyncio.run(is_proven_dead("127.0.0.1", listener.getsockname()[1]))


@pytest.mark.parametrize("error", [OSError(113, "No route to host"), TimeoutError(), ConnectionResetError()])
def test_what_is_no_proof(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    async def fails(host: str, port: int) -> None:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", fails)
    assert not asyncio.run(is_proven_dead("host", 1))


def test_silence_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(host: str, port: int) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio, "open_connection", hangs)
    monkeypatch.setattr(proof, "_ANSWER_S", 0.05)
    assert not asyncio.run(is_proven_dead("host", 1))
