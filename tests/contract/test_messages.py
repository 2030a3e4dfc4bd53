"""Every message: what is well-formed goes through unchanged, everything else is refused by name."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_core.contract.messages import (
    AGENT_TO_CONTROLLER,
    AGENT_TO_WORKER,
    CONTROLLER_TO_AGENT,
    MAX_MESSAGE_BYTES,
    MESSAGES,
    WORKER_TO_AGENT,
    Route,
    check,
    make,
    pack,
    unpack,
)
from ff_core.errors import ProtocolError

NAMES = sorted(MESSAGES)
ROUTES = [CONTROLLER_TO_AGENT, AGENT_TO_CONTROLLER, AGENT_TO_WORKER, WORKER_TO_AGENT]
SAMPLES: dict[type, Any] = {
    int: 7,
    float: 0.5,
    str: "text",
    bytes: b"\x00\xff",
    list: [1, "a"],
    dict: {3: [1], "k": None},
    bool: True,
}
WRONG: dict[type, Any] = {int: "7", float: "x", str: b"bytes", bytes: "text", list: {}, dict: [], bool: 1}


def sample(name: str, *, optional: bool = True) -> dict[str, Any]:
    fields = MESSAGES[name].fields
    return {key: SAMPLES[kinds[0]] for key, (kinds, required) in fields.items() if required or optional}


def route(name: str) -> Route:
    """One that the message travels by."""
    return next(route for route in ROUTES if MESSAGES[name].goes(route))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    for optional in (True, False):
        message = make(route(name), name, **sample(name, optional=optional))
        assert unpack(route(name), pack(message)) == message


@pytest.mark.parametrize("name", NAMES)
def test_each_goes_along_its_path_only(name: str) -> None:
    definition, message = MESSAGES[name], {"t": name, **sample(name)}
    hops = {Route(*hop) for hop in zip(definition.path, definition.path[1:], strict=False)}
    assert hops and hops <= set(ROUTES)
    for way in ROUTES:
        if way in hops:
            assert check(way, message) == message
            continue
        wrong = f"message {name!r} does not go from {way.sender} to {way.receiver}"
        with pytest.raises(ProtocolError, match=wrong):
            make(way, name, **sample(name))
        with pytest.raises(ProtocolError, match=wrong):
            unpack(way, pack(message))


@pytest.mark.parametrize("name", [name for name in NAMES if MESSAGES[name].fields])
def test_every_field_is_checked(name: str) -> None:
    for key, (kinds, required) in MESSAGES[name].fields.items():
        good = sample(name)
        with pytest.raises(ProtocolError, match=f"{name!r}: {key!r} is .*, expected {kinds[0].__name__}"):
            check(route(name), {"t": name, **good, key: WRONG[kinds[0]]})
        if required:
            with pytest.raises(ProtocolError, match=f"{name!r} lacks {key!r}"):
                check(route(name), {"t": name, **{k: v for k, v in good.items() if k != key}})
            with pytest.raises(ProtocolError, match=f"{name!r} lacks {key!r}"):
                check(route(name), {"t": name, **good, key: None})


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="unknown field 'surprise'"):
        make(route(name), name, **sample(name), surprise=1)


def test_truth_values_are_not_numbers() -> None:
    with pytest.raises(ProtocolError, match="'epoch' is bool"):
        make(CONTROLLER_TO_AGENT, "w", epoch=True, version=1, interval=1, pause=False)


@pytest.mark.parametrize(
    "nonsense", [None, 3, "w", [], {}, {"t": 3}, {"t": None}, {"t": "no-such-message"}, {"T": "w"}]
)
def test_not_a_message(nonsense: Any) -> None:
    with pytest.raises(ProtocolError):
        check(CONTROLLER_TO_AGENT, nonsense)
    with pytest.raises(ProtocolError):
        unpack(CONTROLLER_TO_AGENT, msgpack.packb(nonsense))


@given(st.binary(max_size=200), st.sampled_from(ROUTES))
def test_any_bytes_give_a_message_or_a_protocol_error(data: bytes, way: Route) -> None:
    try:
        message = unpack(way, data)
    except ProtocolError:
        return
    assert message["t"] in NAMES


values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["t", "epoch", "version", "rank"]) | st.text(max_size=4), values, max_size=6),
    st.sampled_from(NAMES),
)
def test_any_structure_gives_a_message_or_a_protocol_error(fields: dict[str, Any], name: str) -> None:
    for message in (fields, {**fields, "t": name}):
        try:
            found = unpack(route(name), msgpack.packb(message))
        except ProtocolError:
            continue
        assert found["t"] in NAMES


@given(st.data())
def test_every_truncation_is_noticed(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    packed = pack(make(route(name), name, **sample(name)))
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ProtocolError):
        unpack(route(name), packed[:cut])


def test_oversized() -> None:
    with pytest.raises(ProtocolError, match=f"at most {MAX_MESSAGE_BYTES} are allowed"):
        pack(make(WORKER_TO_AGENT, "persisted", rank=0, path="x" * MAX_MESSAGE_BYTES, version=1))
    with pytest.raises(ProtocolError, match=f"at most {MAX_MESSAGE_BYTES} are allowed"):
        unpack(WORKER_TO_AGENT, b"\x00" * (MAX_MESSAGE_BYTES + 1))
