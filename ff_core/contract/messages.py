"""Every message of the control plane, and the check that each side applies before it acts on one.

A message is a dict with "t" (its name) and the fields below. Each has a path: the processes that it passes, from the
one that first says it to the last that hears it. An unknown name, a wrong direction, a missing field or a wrong type is
a `ProtocolError` that closes the connection. Encoded with msgpack, nothing pickled.
What each message means, and stamps, epochs and states: docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgpack

from ff_core.errors import ProtocolError

Message = dict[str, Any]

MAX_MESSAGE_BYTES = 64 << 20

Side = Literal["controller", "agent", "worker"]


class Route(NamedTuple):
    """One hop: who sends, and who receives. A worker is also what waits for a rank to play (a spare)."""

    sender: Side
    receiver: Side


CONTROLLER_TO_AGENT = Route("controller", "agent")
AGENT_TO_CONTROLLER = Route("agent", "controller")
AGENT_TO_WORKER = Route("agent", "worker")
WORKER_TO_AGENT = Route("worker", "agent")


class Definition(NamedTuple):
    """path: the processes that the message passes, in order.  fields: name -> (accepted types, required)."""

    path: tuple[Side, ...]
    fields: Mapping[str, tuple[tuple[type, ...], bool]]

    def goes(self, route: Route) -> bool:
        """Whether `route` is a part of the path."""
        return route in zip(self.path, self.path[1:], strict=False)


#: Agent and controller say these before anything else; `rpc` handles them.
HANDSHAKE = frozenset(("challenge", "hello", "welcome", "refused", "drained"))
#: What a process understands that does not play a rank yet, and only then.
BEFORE_ROLE = frozenset(("preload", "chosen", "role"))

_I, _F, _S, _B, _L, _D, _BOOL = (int,), (int, float), (str,), (bytes,), (list, tuple), (dict,), (bool,)

#: name -> what it is
MESSAGES: dict[str, Definition] = {}


def _define(name: str, path: str, /, **fields: tuple[type, ...] | tuple[tuple[type, ...], bool]) -> None:
    """path: processes with " > " in between.  fields: accepted types; those of `_opt` may be absent."""
    sides: Any = tuple(path.split(" > "))
    kinds: Any = {key: kind if isinstance(kind[-1], bool) else (kind, True) for key, kind in fields.items()}
    MESSAGES[name] = Definition(sides, kinds)


def _opt(kind: tuple[type, ...]) -> tuple[tuple[type, ...], bool]:
    return kind, False


# --- handshake ---
_define("challenge", "controller > agent", nonce=_B)
_define(
    "hello",
    "agent > controller",
    proof=_B,
    nonce=_B,
    node=_I,
    host_id=_S,
    hostname=_S,
    data_host=_S,
    data_port=_I,
    free_bytes=_I,
    pid=_I,
    launch=_opt(_D),
    machine=_opt(_D),
    rival=_opt(_BOOL),
    standby=_opt(_BOOL),
    drain=_opt(_I),
    deputy=_opt(_L),
    joins=_opt(_D),
    goes_on=_opt(_L),
)
_define("welcome", "controller > agent", proof=_B, job=_D, node=_I, store=_opt(_L))
_define("refused", "controller > agent", reason=_S, term=_opt(_I))
_define("drained", "controller > agent", proof=_B, reason=_S)

# --- from the controller ---
_define("start", "controller > agent", restart=_I, epoch=_I, ranks=_L, injections=_L, standby=_BOOL)
_define("arenas", "controller > agent", epoch=_I, settings=_D, own=_D, replicas=_D)
_define("placement", "controller > agent", epoch=_I, holders=_D, coverage=_S, interval=_I)
_define("w", "controller > agent", epoch=_I, version=_I, interval=_I, pause=_BOOL)
_define("halt", "controller > agent > worker", epoch=_I, dead=_L, settled=_opt(_L))
_define("assign", "controller > agent", epoch=_I, rank=_I, uid=_S, injections=_L, after_exit=_BOOL)
_define(
    "verdict",
    "controller > agent",
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
    coverage=_S,
    interval=_I,
    resumes=_BOOL,
    constants=_opt(_D),
)
_define("regroup", "controller > agent > worker", epoch=_I)
_define("may_leave", "controller > agent > worker", epoch=_I, version=_I)
_define(
    "preload",
    "worker > agent > controller > agent > worker",
    modules=_L,
    calls=_L,
    environ=_opt(_D),
    settings=_opt(_D),
    paths=_opt(_L),
    argv=_opt(_L),
    without=_opt(_L),
)
_define("inject_ack", "controller > agent > worker", id=_I, rank=_I)
_define("corrupt", "controller > agent", rank=_I, kind=_S, id=_I, to=_I)
_define("stop", "controller > agent", code=_I, signum=_I, lost=_opt(_BOOL), drained=_opt(_BOOL))
_define("stay", "controller > agent", signum=_I, reason=_S)
_define("fail_worker", "controller > agent", rank=_I, reason=_S)
_define("look", "controller > agent", id=_I, let_go=_L)
_define("record", "controller > agent", number=_I, content=_D)
_define("heard", "controller > agent", count=_I)
_define("persist", "controller > agent", id=_S, slot_epoch=_I, version=_I, ranks=_D, still=_BOOL, seals=_BOOL)
_define("persist_seal", "controller > agent", id=_S, manifest=_D, keep=_I)
_define("persist_load", "controller > agent", id=_S, epoch=_I, ranks=_D)

# --- to the controller ---
_define("recorded", "agent > controller", number=_I)
_define("beat", "agent > controller", count=_I, free_bytes=_I, progress=_D)
_define("stacks", "agent > controller", id=_I, ranks=_D)
_define("worker_started", "agent > controller", rank=_I, uid=_S, pid=_I, warm=_BOOL)
_define("worker_dying", "agent > controller", rank=_I, uid=_S, at=_F)
_define("worker_exit", "agent > controller", rank=_I, uid=_S, code=_I, tail=_S, sealed=_I, at=_F, kernel=_opt(_S))
_define(
    "protect",
    "worker > agent > controller",
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
_define("arenas_ready", "agent > controller", epoch=_I)
_define("arenas_failed", "agent > controller", epoch=_I, reason=_S)
_define("training", "worker > agent > controller", rank=_I)
_define(
    "cost",
    "worker > agent > controller",
    rank=_I,
    epoch=_I,
    interval=_I,
    fixed_s=_F,
    late_s=_F,
    clear=_I,
    iteration_s=_F,
    slowed_s=_opt(_F),
)
_define("commit", "agent > controller", epoch=_I, versions=_D)
_define("inventory", "agent > controller", epoch=_I, arenas=_L, live=_D)
_define("bad_slot", "worker > agent > controller", rank=_I, epoch=_I, reason=_S)
_define("ready", "worker > agent > controller", rank=_I, epoch=_I, restored_bytes=_I, at=_F)
_define("resumed", "worker > agent > controller", rank=_I, epoch=_I, timings=_D)
_define("redone", "worker > agent > controller", rank=_I, epoch=_I, version=_I, at=_F)
_define("leaving", "worker > agent > controller", rank=_I, epoch=_I, version=_I, again=_BOOL, stats=_opt(_D))
_define("marked", "worker > agent > controller", rank=_I, epoch=_I, version=_I)
_define("give_up", "worker > agent > controller", rank=_I, reason=_S)
_define("left", "worker > agent > controller", rank=_I, epoch=_I, version=_I)
_define("unresumable", "worker > agent > controller", rank=_I, epoch=_I, reason=_S)
_define("hint", "worker > agent > controller", rank=_I, text=_S, site=_S)
_define("persisted", "worker > agent > controller", rank=_I, path=_S, version=_I)
_define("constants", "worker > agent > controller", rank=_I, file=_S, size=_I)
_define("persist_part", "agent > controller", id=_S, rank=_I, file=_S, size=_I, reason=_S)
_define("persist_sealed", "agent > controller", id=_S, reason=_S)
_define("persist_loaded", "agent > controller", id=_S, epoch=_I, reasons=_D)
_define("spare_ready", "worker > agent > controller", uid=_S)
_define("spare_gone", "agent > controller", uid=_S)
_define("inject_fired", "worker > agent > controller", rank=_I, id=_I, at=_F, action=_S)
_define("corrupted", "agent > controller", rank=_I, id=_I, to=_I)
_define("stopped", "agent > controller")
_define("drain", "agent > controller", signum=_I)

# --- between worker and agent only ---
_define("chosen", "agent > worker", local_rank=_I)
_define("device_has_room", "worker > agent")
_define(
    "role",
    "agent > worker",
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
    store=_opt(_L),
)
_define("arena", "agent > worker", epoch=_I, holders=_L, coverage=_S, interval=_I)
_define(
    "go_on",
    "agent > worker",
    epoch=_I,
    version=_I,
    source=_S,
    filled=_BOOL,
    newcomers=_L,
    restored=_L,
    source_rank=_opt(_I),
    holders=_L,
    coverage=_S,
    interval=_I,
    resumes=_BOOL,
    constants=_opt(_S),
    store=_opt(_L),
)
_define("booted", "worker > agent")
_define("halted", "worker > agent", epoch=_I, version=_I, sealed=_BOOL)
_define("slot_ready", "agent > worker", epoch=_I)
_define("spare_unfit", "worker > agent", uid=_S, reasons=_D)

#: What workers say to the controller: their agents pass it on.
FORWARDED = {name for name, it in MESSAGES.items() if it.goes(WORKER_TO_AGENT) and it.goes(AGENT_TO_CONTROLLER)}


def check(route: Route, message: Any) -> Message:
    """Return `message` if it is well-formed and may travel by `route`, else raise `ProtocolError` naming what is
    wrong."""
    if not isinstance(message, dict) or not isinstance(message.get("t"), str):
        raise ProtocolError(f"not a message: {str(message)[:80]}")
    name = message["t"]
    definition = MESSAGES.get(name)
    if definition is None:
        raise ProtocolError(f"unknown message {name!r}")
    if not definition.goes(route):
        raise ProtocolError(f"message {name!r} does not go from {route.sender} to {route.receiver}")
    for key, (kinds, required) in definition.fields.items():
        if key not in message or message[key] is None:
            if required:
                raise ProtocolError(f"message {name!r} lacks {key!r}")
            continue
        value = message[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ProtocolError(f"message {name!r}: {key!r} is {type(value).__name__}, expected {kinds[0].__name__}")
    for key in message:
        if key != "t" and key not in definition.fields:
            raise ProtocolError(f"message {name!r} has an unknown field {key!r}")
    return message


def make(route: Route, name: str, **fields: Any) -> Message:
    """Build and check a message that is about to leave by `route`."""
    return check(route, {"t": name, **fields})


def pack(message: Message) -> bytes:
    """Encode a checked message."""
    encoded = msgpack.packb(message, use_bin_type=True)
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"message {message.get('t')!r} has {len(encoded)} bytes, at most {MAX_MESSAGE_BYTES} are allowed"
        )
    return encoded


def unpack(route: Route, data: bytes) -> Message:
    """Decode and check what came by `route`; raises `ProtocolError` for anything that is not a well-formed message of
    that direction."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{len(data)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        return check(route, msgpack.unpackb(data, raw=False, strict_map_key=False))
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"not msgpack: {error}") from error
