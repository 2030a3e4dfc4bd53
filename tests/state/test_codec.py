from __future__ import annotations

import datetime
import enum
import math
import random
import struct
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ff_core.errors import ProtocolError, UnsupportedError
from ff_core.state.codec import decode, encode


def same(a: Any, b: Any) -> bool:
    """Equal in type and bits, unlike ==, for which nan != nan and 0.0 == -0.0 == False."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float) and type(a) is float:
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex) and type(a) is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):

        def raw(t: torch.Tensor) -> torch.Tensor:
            return t.contiguous().reshape(-1).view(torch.uint8)

        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))
    return bool(a == b)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.timedeltas()
)
keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        | st.frozensets(st.integers())
        | st.sets(st.text())
    ),
    max_leaves=25,
)


@given(trees)
@settings(max_examples=300, deadline=None)
def test_round_trip(value: Any) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        2**63, 2**64, -(2**63) - 1, 10**400, -1, 255, -256,
        -0.0, math.inf, -math.inf, struct.unpack("d", b"\x01\x02\x03\x04\x05\x06\xf8\x7f")[0],
        "a\ud800b", "", b"", bytearray(b"x"), (), [], {}, set(), frozenset({1, "a", (2, 3)}),
        {(1, "a", (None, 2.5)): {0: "int key", "0": "text key"}}, {True: 1, 2: 3},
        Counter("abca"), OrderedDict([("b", 1), ("a", 2)]),
        datetime.timedelta(days=-3, seconds=5, microseconds=7),
        random.Random(3).getstate(),
        np.random.RandomState(3).get_state(),
        np.float64(0.1), np.int8(-3), np.bool_(True), np.str_("abc"), np.str_(""), np.datetime64("2020-01-02"),
        np.arange(6, dtype=">i4").reshape(2, 3), np.zeros((0, 3)), np.array(5.0), np.array(["ab", "c"]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]), torch.Size([]),
    ],
)  # fmt: skip
def test_particular_values(value: Any) -> None:
    assert same(decode(encode(value)), value)


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (2, 3)], ids=str)
def test_tensors_of_every_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    assert same(decode(encode({"t": tensor})), {"t": tensor})


def test_tensor_comes_back_plain() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
    # conjugated and negated lazily, and strided
    for view in (weight.conj(), weight.t().conj(), weight.conj().imag, weight[:, 1]):
        back = decode(encode(view))
        assert type(back) is torch.Tensor
        assert not back.requires_grad
        assert torch.equal(back, view.detach())
    back.zero_()  # its own memory
    assert weight.abs().sum() > 0


def test_generator_goes_on_after_a_round_trip() -> None:
    source = random.Random(1)
    copy = random.Random()
    copy.setstate(decode(encode(source.getstate())))
    assert [copy.random() for _ in range(700)] == [source.random() for _ in range(700)]


class Colour(enum.IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "place", "kind"),
    [
        ({"lr_scheduler": {"fn": len}}, "scalars['lr_scheduler']['fn']", "builtin_function_or_method"),
        ({"a": [1, (2, object())]}, "scalars['a'][1][1]", "object"),
        ({"c": Colour.RED}, "scalars['c']", "Colour"),
        ({"p": Point(1, 2)}, "scalars['p']", "Point"),
        ({"s": Text("x")}, "scalars['s']", "Text"),
        ({"k": {Colour.RED: 1}}, "scalars['k']", "Colour"),
        ({"k": {frozenset(): 1}}, "scalars['k']", "frozenset"),
        ({"g": torch.Generator()}, "scalars['g']", "Generator"),
        ({"n": np.array([object()])}, "scalars['n']", "object"),
        ({"n": np.zeros(2, dtype=[("a", "i4")])}, "scalars['n']", "dtype"),
        ({"t": torch.eye(2).to_sparse()}, "scalars['t']", "sparse"),
        ({"t": torch.empty(2, device="meta")}, "scalars['t']", "meta"),
    ],
)
def test_unsupported_value_is_named_with_its_place(value: Any, place: str, kind: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        encode(value, name="scalars")
    assert str(caught.value).startswith(f"{place}: ")
    assert kind in str(caught.value)


def test_value_that_contains_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnsupportedError, match="contain itself"):
        encode(loop)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_are_refused_or_plain(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert f"{len(data)} bytes" in str(error)


@pytest.mark.parametrize("cut", [0, 1, 5, 40, -1])
def test_truncated(cut: int) -> None:
    data = encode({"x": torch.arange(50), "y": [1, 2, 3]})
    with pytest.raises(ProtocolError):
        decode(data[:cut])


@example(45675, 4)  # a type name that is no Python
@given(st.integers(min_value=0), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:Data type alias:DeprecationWarning")  # NumPy on a damaged dtype
def test_flipped_bit_never_escapes_as_another_error(position: int, bit: int) -> None:
    value = {"t": torch.arange(3), "n": np.arange(3), "d": torch.float32, "l": [1.5, 2**70, {"a": ()}]}
    data = bytearray(encode(value))
    data[position % len(data)] ^= 1 << bit
    try:
        decode(data)
    except ProtocolError:
        pass  # refusing is right; what is decodable nevertheless is for the slot's checksum to catch
