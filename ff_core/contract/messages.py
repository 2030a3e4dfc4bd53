"""Every message of the control plane, and the check that each side applies before it acts on one.

A message is a dict with "t" (its name) and the fields below; unknown names, missing fields and wrong types are a
`ProtocolError` that closes the connection. `?` after a type: the field may be absent. Encoded with msgpack, nothing
pickled.
Stamps, epochs and states: docs/protocol.md.
"""

from __future__ import annotations

from typing import Any

import msgpack

from ff_core.errors import ProtocolError

Message = dict[str, Any]

MAX_MESSAGE_BYTES = 64 << 20

_I, _F, _S, _B, _L, _D, _BOOL = (int,), (int, float), (str,), (bytes,), (list, tuple), (dict,), (bool,)

#: name -> {field: (accepted types, required)}
_SCHEMA: dict[str, dict[str, tuple[tuple[type, ...], bool]]] = {}


def _define(name: str, **fields: tuple[type, ...] | tuple[tuple[type, ...], bool]) -> None:
    _SCHEMA[name] = {
        key: (kind, True) if not isinstance(kind[-1], bool) else kind
        for key, kind in fields.items()
    }


def _opt(kind: tuple[type, ...]) -> tuple[tuple[type, ...], bool]:
    return kind, False


# --- handshake (agent <-> controller) ---
_define("challenge", nonce=_B)
_define(
    "hello", proof=_B, nonce=_B, node=_I, host_id=_S, hostname=_S, data_host=_S, data_port=_I, free_bytes=_I, pid=_I
)
_define("welcome", proof=_B, job=_D)
_define("refused", reason=_S)

# --- controller -> agent ---
_define("start", restart=_I, epoch=_I, ranks=_L, injections=_L)
_define("arenas", epoch=_I, settings=_D, own=_D, replicas=_D)
_define("placement", epoch=_I, holders=_D, protected=_S)
_define("w", epoch=_I, version=_I)
_define("halt", epoch=_I, dead=_L)
_define("assign", epoch=_I, rank=_I, uid=_S, injections=_L, after_exit=_BOOL)
_define(
    "verdict",
    epoch=_I,
    old_epoch=_I,
    version=_I,
    source_rank=_opt(_I),
    newcomers=_L,
    restored=_L,
    roles=_D,
    send=_L,
    own=_D,
    replicas=_D,
    holders=_D,
    protected=_S,
)
_define("regroup", epoch=_I)
_define("may_leave", epoch=_I, version=_I)
_define("preload", modules=_L, calls=_L, environ=_opt(_D), argv=_opt(_L), without=_opt(_L))
_define("inject_ack", id=_I, rank=_I)
_define("corrupt", rank=_I, kind=_S, id=_I, to=_I)
_define("stop", code=_I, signum=_I)
_define("fail_worker", rank=_I, reason=_S)

# --- agent -> controller ---
_define("beat", free_bytes=_I, progress=_D)
_define("worker_started", rank=_I, uid=_S, pid=_I, warm=_BOOL)
_define("worker_dying", rank=_I, uid=_S, at=_F)
_define("worker_exit", rank=_I, uid=_S, code=_I, tail=_S, sealed=_I, at=_F)
_define(
    "protect",
    rank=_I,
    sent_bytes=_I,
    local_bytes=_I,
    blob_capacity=_I,
    journal_bytes=_I,
    settings=_D,
    has_constant=_BOOL,
    on_device=_BOOL,
    peers=_opt(_L),
)
_define("arenas_ready", epoch=_I)
_define("arenas_failed", epoch=_I, reason=_S)
_define("training", rank=_I)
_define("commit", epoch=_I, versions=_D)
_define("inventory", epoch=_I, arenas=_L, live=_D)
_define("bad_slot", rank=_I, epoch=_I, reason=_S)
_define("ready", rank=_I, epoch=_I, restored_bytes=_I, at=_F)
_define("resumed", rank=_I, epoch=_I, timings=_D)
_define("redone", rank=_I, epoch=_I, version=_I, at=_F)
_define("leaving", rank=_I, epoch=_I, version=_I, stats=_opt(_D))
_define("hint", rank=_I, text=_S, site=_S)
_define("persisted", rank=_I, path=_S, version=_I)
_define("spare_ready", uid=_S)
_define("spare_gone", uid=_S)
_define("inject_fired", rank=_I, id=_I, at=_F, action=_S)
_define("corrupted", rank=_I, id=_I, to=_I)
_define("stopped")

# --- worker <-> agent only (forwarded ones are above) ---
_define(
    "role",
    rank=_I,
    env=_D,
    entrypoint=_L,
    no_python=_BOOL,
    newcomer=_BOOL,
    epoch=_I,
    secret=_B,
    job=_D,
    injections=_L,
    world_size=_I,
)
_define("arena", epoch=_I, holders=_L, protected=_S)
_define("booted")
_define("halted", epoch=_I, version=_I, sealed=_BOOL)
_define("slot_ready", epoch=_I)
_define("spare_unfit", uid=_S, reasons=_D)


def check(message: Any) -> Message:
    """Return `message` if it is well-formed, else raise `ProtocolError` naming what is wrong."""
    if not isinstance(message, dict) or not isinstance(message.get("t"), str):
        raise ProtocolError(f"not a message: {str(message)[:80]}")
    name = message["t"]
    schema = _SCHEMA.get(name)
    if schema is None:
        raise ProtocolError(f"unknown message {name!r}")
    for key, (kinds, required) in schema.items():
        if key not in message or message[key] is None:
            if required:
                raise ProtocolError(f"message {name!r} lacks {key!r}")
            continue
        value = message[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ProtocolError(f"message {name!r}: {key!r} is {type(value).__name__}, expected {kinds[0].__name__}")
    for key in message:
        if key != "t" and key not in schema:
            raise ProtocolError(f"message {name!r} has an unknown field {key!r}")
    return message


def make(name: str, **fields: Any) -> Message:
    """Build and check a message."""
    return check({"t": name, **fields})


def pack(message: Message) -> bytes:
    """Encode a checked message."""
    encoded = msgpack.packb(message, use_bin_type=True)
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"message {message.get('t')!r} has {len(encoded)} bytes, at most {MAX_MESSAGE_BYTES} are allowed"
        )
    return encoded


def unpack(data: bytes) -> Message:
    """Decode and check; raises `ProtocolError` for anything that is not a well-formed message."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{len(data)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        return check(msgpack.unpackb(data, raw=False, strict_map_key=False))
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"not msgpack: {error}") from error
