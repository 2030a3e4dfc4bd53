"""Turns the small part of a rank's state (counters, schedulers, RNG, data position) into bytes and back.

The format is msgpack with explicit tags; nothing is pickled, so bytes from another process cannot run code here. Values
come back with the same type and the same bits: floats keep NaN payloads and signed zeros, tensors any dtype.

    encode(value) -> bytes            decode(bytes) -> value
    begin(value) -> Encoding          the same, but tensors of a device may still be on their way

Supported: None, bool, int of any size, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict and
OrderedDict and Counter (keys: None, bool, numbers, str, bytes, tuples of those), NumPy arrays and scalars, strided
torch tensors, torch.dtype, torch.device, torch.Size, datetime.timedelta. Tensors are copied, come back on the CPU
without gradient, and no longer share storage with each other. Anything else, subclasses and enum members included, is
refused: it could come back as something else.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgpack

from ff_core.errors import ProtocolError, UnsupportedError
from ff_core.state import codec_values

if TYPE_CHECKING:
    import torch

    from ff_core.state.arriving import Arriving

_FORMAT = 1
_MAX_DEPTH = 200

# Every msgpack array of the format is [tag, ...]; everything else stands for itself.
_LIST, _TUPLE, _DICT, _ORDERED_DICT, _COUNTER, _SET, _FROZENSET = range(7)
_INT, _COMPLEX, _BYTEARRAY, _TIMEDELTA = range(10, 14)
_NUMPY_ARRAY, _NUMPY_SCALAR = range(20, 22)
_TENSOR, _DTYPE, _DEVICE, _SIZE = range(30, 34)

_SEQUENCES: dict[type, int] = {list: _LIST, tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_MAPPINGS: dict[type, int] = {dict: _DICT, OrderedDict: _ORDERED_DICT, Counter: _COUNTER}
_PLAIN = frozenset({type(None), bool, float, str, bytes})  # and int, as far as msgpack has room
_KEYS = _PLAIN | {int}  # they stand for themselves, too: msgpack hands a whole number back that it has no room for
# NumPy kinds that dtype.str describes fully: bool, int, unsigned, float, complex, bytes, str, timedelta, datetime.
_NUMPY_KINDS = "biufcSUmM"


def encode(value: Any, name: str = "state") -> bytes:
    """`value` as bytes.

    name: what to call it in messages. Raises UnsupportedError naming the place, e.g. scalars['lr_scheduler']['fn'].
    """
    return begin(value, name).bytes()


def begin(value: Any, name: str = "state") -> Encoding:
    """As encode(), of `value` as it is now: nothing waits for a device. Raises as encode()."""
    later: list[Arriving] = []
    try:
        tree = _pack(value, 0, later)
    except _Refused as refused:
        place = name + "".join(reversed(refused.steps))
        place = place if len(place) <= 300 else f"{place[:300]}..."
        raise UnsupportedError(f"{place}: {refused}") from None
    return Encoding(tree, later)


class Encoding:
    """A value of which all but the contents of tensors on a device is encoded; those are being copied to the host."""

    def __init__(self, tree: Any, later: list[Arriving]) -> None:
        self._tree, self._later = tree, later

    def arrived(self) -> bool:
        """bytes() need not wait."""
        return all(tensor.arrived() for tensor in self._later)

    def bytes(self) -> bytes:
        """All of it. Waits for the device if it must."""
        packed: bytes = msgpack.packb(
            [_FORMAT, self._tree], use_bin_type=True, unicode_errors="surrogatepass", default=_not_plain
        )
        return packed


def _not_plain(value: int | Arriving) -> bytes | list[Any]:
    """What msgpack cannot encode itself."""
    return _whole(value) if isinstance(value, int) else codec_values.bytes_of(value.host())


def _whole(value: int) -> list[Any]:
    return [_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The value that `encode` was given. Raises ProtocolError when `data` is not what `encode` returns."""
    try:
        tree = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True, unicode_errors="surrogatepass")
        if not isinstance(tree, list) or len(tree) != 2 or tree[0] != _FORMAT:
            raise ValueError("no state of a known format")
        return _unpack(tree[1])
    except Exception as error:  # NumPy's parser of type names alone knows half a dozen
        raise ProtocolError(f"state of {len(data)} bytes cannot be decoded: {error}") from error


class _Refused(Exception):
    """A value that cannot be encoded. `steps` leads to it, innermost first: collected only on refusal."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.steps: list[str] = []


def _pack(value: Any, depth: int, later: list[Arriving]) -> Any:
    kind = type(value)
    if kind is int:
        if -(2**63) <= value < 2**64:
            return value
        return _whole(value)
    if kind in _PLAIN:
        return value
    if depth > _MAX_DEPTH:
        raise _Refused(f"nested deeper than {_MAX_DEPTH} levels; does it contain itself?")
    if kind in _SEQUENCES:
        return _pack_sequence(value, kind, depth, later)
    if kind in _MAPPINGS:
        return _pack_mapping(value, kind, depth, later)
    if kind is complex:
        return [_COMPLEX, value.real, value.imag]
    if kind is bytearray:
        return [_BYTEARRAY, bytes(value)]
    if kind is datetime.timedelta:
        return [_TIMEDELTA, value.days, value.seconds, value.microseconds]
    # A NumPy or torch value can only exist if its library has been imported.
    for library, pack in (("torch", _pack_torch), ("numpy", _pack_numpy)):
        if library in sys.modules:
            packed = pack(value, later)
            if packed is not None:
                return packed
    raise _Refused(
        f"a value of type {_name(kind)} cannot be saved with the state; "
        "convert it to plain numbers, strings, lists, dicts, NumPy arrays or tensors"
    )


def _pack_sequence(value: Any, kind: type, depth: int, later: list[Arriving]) -> list[Any]:
    if _KEYS.issuperset(map(type, value)):
        return [_SEQUENCES[kind], *value]
    tree: list[Any] = [_SEQUENCES[kind]]
    position, item = 0, None
    try:
        for position, item in enumerate(value):  # noqa: B007 - for the message
            tree.append(_pack(item, depth + 1, later))
    except _Refused as refused:
        refused.steps.append(f"[{position if kind in (list, tuple) else repr(item)}]")
        raise
    return tree


def _pack_mapping(value: Any, kind: type, depth: int, later: list[Arriving]) -> list[Any]:
    if _KEYS.issuperset(map(type, value)) and _KEYS.issuperset(map(type, value.values())):
        return [_MAPPINGS[kind], *chain.from_iterable(value.items())]
    tree: list[Any] = [_MAPPINGS[kind]]
    for key, item in value.items():
        if not _is_key(key):
            raise _Refused(
                f"dictionary key {key!r} of type {_name(type(key))} cannot be saved with the state; "
                "keys may be None, bool, int, float, str, bytes and tuples of those"
            )
        try:
            tree += (_pack(key, depth + 1, later), _pack(item, depth + 1, later))
        except _Refused as refused:
            refused.steps.append(f"[{key!r}]")
            raise
    return tree


def _is_key(key: Any) -> bool:
    return type(key) in _KEYS or (type(key) is tuple and all(_is_key(part) for part in key))


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _pack_numpy(value: Any, later: list[Arriving]) -> list[Any] | None:
    import numpy as np

    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    if value.dtype.kind not in _NUMPY_KINDS:
        raise _Refused(
            f"a NumPy value of dtype {value.dtype} cannot be saved with the state; "
            "convert it to a numeric, boolean, string or time dtype"
        )
    if isinstance(value, np.generic):
        cell = np.asarray(value)  # widens the empty string's dtype to an item that has a size
        return [_NUMPY_SCALAR, cell.dtype.str, cell.tobytes()]
    return [_NUMPY_ARRAY, value.dtype.str, list(value.shape), value.tobytes()]


def _pack_torch(value: Any, later: list[Arriving]) -> list[Any] | None:
    import torch

    if isinstance(value, torch.Tensor):
        return _pack_tensor(value, later)
    if isinstance(value, torch.dtype):
        return [_DTYPE, str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return [_DEVICE, str(value)]
    if isinstance(value, torch.Size):
        return [_SIZE, *value]
    return None


def _pack_tensor(value: torch.Tensor, later: list[Arriving]) -> list[Any]:
    import torch

    plain = type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not plain or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        raise _Refused(
            f"a {_name(type(value))} with layout {value.layout} on {value.device} cannot be saved with the "
            "state; give a plain dense tensor (for example its local part)"
        )
    dense = value.detach().resolve_conj().resolve_neg().contiguous()
    data: bytes | Arriving
    if dense.device.type == "cpu":
        data = codec_values.bytes_of(dense)
    else:
        from ff_core.state.arriving import Arriving

        data = Arriving(dense)
        later.append(data)
    return [_TENSOR, str(dense.dtype).removeprefix("torch."), list(dense.shape), data]


def _unpack(tree: Any) -> Any:
    if not isinstance(tree, list):
        return tree
    tag, *parts = tree
    return _UNPACK[tag](parts)


def _unpack_pairs(parts: list[Any]) -> list[tuple[Any, Any]]:
    if len(parts) % 2:
        raise ValueError("a dictionary with a key and no value")
    return [(_unpack(parts[i]), _unpack(parts[i + 1])) for i in range(0, len(parts), 2)]


def _unpack_int(parts: list[Any]) -> int:
    (data,) = parts
    return int.from_bytes(data, "little", signed=True)


_UNPACK: dict[int, Callable[[list[Any]], Any]] = {
    _LIST: lambda parts: [_unpack(x) for x in parts],
    _TUPLE: lambda parts: tuple(_unpack(x) for x in parts),
    _SET: lambda parts: {_unpack(x) for x in parts},
    _FROZENSET: lambda parts: frozenset(_unpack(x) for x in parts),
    _DICT: lambda parts: dict(_unpack_pairs(parts)),
    _ORDERED_DICT: lambda parts: OrderedDict(_unpack_pairs(parts)),
    _COUNTER: lambda parts: Counter(dict(_unpack_pairs(parts))),
    _INT: _unpack_int,
    _COMPLEX: lambda parts: complex(*parts),
    _BYTEARRAY: lambda parts: bytearray(*parts),
    _TIMEDELTA: lambda parts: datetime.timedelta(*parts),
    _NUMPY_ARRAY: codec_values.numpy_array,
    _NUMPY_SCALAR: codec_values.numpy_scalar,
    _TENSOR: codec_values.tensor,
    _DTYPE: codec_values.dtype,
    _DEVICE: codec_values.device,
    _SIZE: codec_values.size,
}
