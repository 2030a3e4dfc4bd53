"""Proof of the job's secret on real sockets: right, wrong, replayed, cut short, too long."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from ff_core.contract import auth
from ff_core.contract.auth import NONCE_BYTES, PROOF_BYTES, accept_data, answer_data, connect_data, new_secret, proof
from ff_core.errors import ProtocolError

DEADLINE_S = 30.0
HELLO = {"rank": 3, "kind": "replica", "epoch": 2}


class Server:
    """Accepts one connection as an agent would and keeps what came of it."""

    def __init__(self, secret: bytes, *, accept: bool = True, timeout_s: float = DEADLINE_S) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.outcome: Any = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(secret, accept, timeout_s)), daemon=True)
        self._thread.start()

    async def _serve(self, secret: bytes, accept: bool, timeout_s: float) -> None:
        self.listener.setblocking(False)
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        sock.setblocking(False)
        try:
            self.outcome = await accept_data(sock, secret, timeout_s)
            await answer_data(sock, accept)
        except (ProtocolError, asyncio.TimeoutError, OSError) as error:
            self.outcome = error
        finally:
            sock.close()

    def result(self) -> Any:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self.listener.close()
        return self.outcome


def test_right_secret() -> None:
    secret = new_secret()
    server = Server(secret)
    sock = connect_data(server.address, secret, HELLO, DEADLINE_S)
    assert sock.gettimeout() is None, "the engine wants a blocking socket"
    assert server.result() == HELLO
    sock.close()


def test_client_with_another_secret_notices_and_tells_nothing() -> None:
    server = Server(new_secret())
    with pytest.raises(ProtocolError, match="does not know the job's secret"):
        connect_data(server.address, new_secret(), HELLO, DEADLINE_S)
    assert isinstance(server.result(), ProtocolError)


def test_refusal_names_the_hello() -> None:
    secret = new_secret()
    server = Server(secret, accept=False)
    with pytest.raises(ProtocolError, match=r"refused .*'epoch': 2"):
        connect_data(server.address, secret, HELLO, DEADLINE_S)
    server.result()


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            connect_data(unused.getsockname()[:2], new_secret(), HELLO, DEADLINE_S)


def raw(server: Server, talk: Callable[[socket.socket], None]) -> Any:
    with socket.create_connection(server.address, timeout=DEADLINE_S) as sock:
        talk(sock)
    return server.result()


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part
        data += part
    return data


def opening(sock: socket.socket, nonce: bytes = b"n" * NONCE_BYTES) -> bytes:
    """The server's nonce."""
    sock.sendall(b"FFD1" + nonce)
    return receive(sock, NONCE_BYTES + PROOF_BYTES)[:NONCE_BYTES]


def body(hello: Any = HELLO) -> bytes:
    return bytes(msgpack.packb(hello))


def test_a_client_that_only_pretends() -> None:
    def talk(sock: socket.socket) -> None:
        opening(sock)
        sock.sendall(b"p" * PROOF_BYTES + struct.pack("<I", len(body())) + body())
        assert sock.recv(1) == b""

    error = raw(Server(new_secret()), talk)
    assert isinstance(error, ProtocolError) and "does not know the job's secret" in str(error)


def test_a_recorded_conversation_cannot_be_replayed() -> None:
    secret = new_secret()
    said: list[bytes] = []

    def record(sock: socket.socket) -> None:
        theirs = opening(sock)
        said.append(
            proof(secret, "client", theirs, b"n" * NONCE_BYTES, body()) + struct.pack("<I", len(body())) + body()
        )
        sock.sendall(said[0])
        assert sock.recv(1) == b"+"

    assert raw(Server(secret), record) == HELLO

    def replay(sock: socket.socket) -> None:
        opening(sock)
        sock.sendall(said[0])
        assert sock.recv(1) == b""

    assert isinstance(raw(Server(secret), replay), ProtocolError)


def test_the_servers_proof_cannot_be_reflected() -> None:
    """A peer that sends the server's own proof back has proven nothing: proofs are bound to a side."""
    secret = new_secret()

    def talk(sock: socket.socket) -> None:
        sock.sendall(b"FFD1" + b"n" * NONCE_BYTES)
        answer = receive(sock, NONCE_BYTES + PROOF_BYTES)
        sock.sendall(answer[NONCE_BYTES:] + struct.pack("<I", len(body())) + body())
        assert sock.recv(1) == b""

    assert isinstance(raw(Server(secret), talk), ProtocolError)


def test_the_hello_is_bound_to_the_proof() -> None:
    secret = new_secret()

    def talk(sock: socket.socket) -> None:
        theirs = opening(sock)
        other = body({**HELLO, "epoch": 3})
        sock.sendall(
            proof(secret, "client", theirs, b"n" * NONCE_BYTES, body()) + struct.pack("<I", len(other)) + other
        )
        assert sock.recv(1) == b""

    assert isinstance(raw(Server(secret), talk), ProtocolError)


def test_oversized_hello_is_refused_before_it_is_read() -> None:
    secret = new_secret()

    def talk(sock: socket.socket) -> None:
        opening(sock)
        sock.sendall(b"p" * PROOF_BYTES + struct.pack("<I", 2**32 - 1))
        assert sock.recv(1) == b""

    error = raw(Server(secret), talk)
    assert isinstance(error, ProtocolError) and "hello of 4294967295 bytes" in str(error)


@pytest.mark.parametrize("hello", [[1, 2], "text", 7, None])
def test_a_hello_must_be_an_object(hello: Any) -> None:
    secret = new_secret()

    def talk(sock: socket.socket) -> None:
        theirs, data = opening(sock), body(hello)
        sock.sendall(proof(secret, "client", theirs, b"n" * NONCE_BYTES, data) + struct.pack("<I", len(data)) + data)
        assert sock.recv(1) == b""

    assert isinstance(raw(Server(secret), talk), ProtocolError)


@pytest.mark.parametrize("data", [b"\xc1\xc1", b"\x81\xa1a", b"", b"\xd9\xff"])
def test_a_hello_that_is_not_msgpack(data: bytes) -> None:
    secret = new_secret()

    def talk(sock: socket.socket) -> None:
        theirs = opening(sock)
        sock.sendall(proof(secret, "client", theirs, b"n" * NONCE_BYTES, data) + struct.pack("<I", len(data)) + data)
        assert sock.recv(1) == b""

    assert isinstance(raw(Server(secret), talk), ProtocolError)


def test_not_one_of_ours() -> None:
    error = raw(Server(new_secret()), lambda sock: sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert isinstance(error, ProtocolError) and "not one of ours" in str(error)


@pytest.mark.parametrize("length", [0, 3, 4, 19])
def test_truncated_opening(length: int) -> None:
    error = raw(Server(new_secret()), lambda sock: sock.sendall((b"FFD1" + b"n" * NONCE_BYTES)[:length]))
    assert isinstance(error, ProtocolError) and "closed during the handshake" in str(error)


def test_silence_has_a_deadline() -> None:
    server = Server(new_secret(), timeout_s=0.2)
    with socket.create_connection(server.address):
        assert isinstance(server.result(), asyncio.TimeoutError)


def test_a_server_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            sock, _ = listener.accept()
            receive(sock, 4 + NONCE_BYTES)
            sock.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ProtocolError, match="closed during the handshake"):
            connect_data(listener.getsockname()[:2], new_secret(), HELLO, DEADLINE_S)
        thread.join(DEADLINE_S)


def test_proofs_differ_by_everything_they_bind() -> None:
    base = ("client", b"a" * 16, b"b" * 16, b"c")
    others = [
        ("server", *base[1:]),
        ("client", b"x" * 16, *base[2:]),
        (*base[:2], b"x" * 16, b"c"),
        (*base[:3], b"x"),
        ("client", base[2], base[1], b"c"),
    ]
    proofs = {proof(b"k", *base), proof(b"K", *base), *(proof(b"k", *other) for other in others)}
    assert len(proofs) == len(others) + 2
    assert auth.verify(b"k", "client", b"b" * 16, b"a" * 16, proof(b"k", "client", b"b" * 16, b"a" * 16))
