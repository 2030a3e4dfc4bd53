"""A script's values as the codec can save them. `ff_core.state.restored` puts them back.

    taken = Taker(room, left, known, share=True).take(value)   # nested lists of plain values, arrays and (live) tensors

Plain values, NumPy's, tensors with their gradients, random generators; iterators over what can be saved; lists, tuples,
sets, deques and dicts, and what classes have made of these; models, and objects of the script's own classes; classes,
functions and members of an enum by name. What is of another kind is left as it is.

A taken value is a list. The first entry says of which kind:

    plain VALUE | left | known LABEL | text KIND TEXT | named NAME | member NAME NAME-OF-MEMBER
    tensor TENSOR DEVICE IS-LEAF GRADIENT [ATTRIBUTES] | array ARRAY | records BYTES SHAPE DTYPE | random STATE
    made from NAME NUMBER [ATTRIBUTES] | span START STOP STEP | place INDEX | range START STOP STEP INDEX |
    iterator KIND [TAKEN...] TAKEN | placed PLACE | next TAKEN, of what it is bound to |
    holder BASE ITEMS LENGTH-LIMIT CLASS ATTRIBUTES | numbers BASE ENTRIES LENGTH-LIMIT CLASS ATTRIBUTES |
    object CLASS ATTRIBUTES | parts CLASS ATTRIBUTES ARE-THEY-ALL | contents PLAIN | module [[NAME, TAKEN]...] |
    cache [[[TAKEN...] KEYWORDS TAKEN]...] | weak KIND [[KEY, TAKEN]...], where a [] stands for an object by its place
    id of NAME | shared NUMBER TAKEN | same NUMBER | view NUMBER SHAPE STRIDES OFFSET: see `ff_core.state.shared`
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import chain
from types import GeneratorType
from typing import Any

import torch

from ff_core.state import caches, foreign, generators, objects, standard, taken_hidden, unwritten, values, weak
from ff_core.state.identities import Numbers
from ff_core.state.placed import Placed
from ff_core.state.room import LostError, Room, Taken
from ff_core.state.shared import Met
from ff_core.state.taken_hidden import LEFT
from ff_core.state.values import ITERATORS, PLAIN, SCALARS, WRITTEN_AS, np

_DEPTH = 8
_KEYS = frozenset({bool, int, float, str, bytes, type(None)})
_NUMBERS = frozenset({bool, int, float, type(None)})
_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_NUMPY_KINDS = "biufcSUmM"


class Taker:
    """left: whether somebody else saves a value.  known: the label of an object that is saved by itself, else None.
    share: tensors as they are, to be encoded at once; else copies.  met: what was taken before belongs together with
    this.  ids: see `ff_core.state.identities`."""

    def __init__(
        self, room: Room, left: Callable[[Any], bool], known: Callable[[Any], str | None], *, share: bool,
        met: Met | None = None, ids: Numbers | None = None,
    ) -> None:  # fmt: skip
        self._met, self._ids = met, ids or {}
        self.room, self._left, self.known, self._share = room, left, known, share
        self.above: list[int] = []
        self._libraries = 0  # objects of libraries above

    def _are_unwritten(self, tensors: list[torch.Tensor]) -> bool:
        """Whether they need not be saved: they are what they were when training began, which is now if not `share`."""
        if not self._share:
            unwritten.begin(tensors)
        return unwritten.are(tensors)

    def take(self, value: Any, at: str = "") -> Taken:
        """at: the label under which `value` itself is known. Raises LostError."""
        room = self.room.size, self.room.items
        try:
            return self.part(value, at)
        except LostError:
            self.room.size, self.room.items = room
            raise

    def part(self, value: Any, at: str = "") -> Taken:
        kind = type(value)
        if kind in PLAIN or kind in SCALARS:
            self.room.use(len(value) if kind in (str, bytes, bytearray) else 0)
            return ["id of", self._ids[value]] if kind is int and value in self._ids else ["plain", value]
        if kind is range:
            return ["span", value.start, value.stop, value.step]
        label = self.known(value)
        if label is not None and label != at:
            return ["known", label]
        if self._left(value):
            return LEFT
        if id(value) in self.above:
            return self._met.inner(value) if self._met is not None and objects.is_users_object(value) else LEFT
        return self._once(value, self._new)

    def _once(self, value: Any, take: Callable[[Any], Taken]) -> Taken:
        """What take(value) gives, or that it was taken before."""
        if self._met is None:
            return take(value)
        again, count = self._met.again(value), len(self._met)
        if again is not None:
            return again
        try:
            taken = take(value)
        except LostError:
            self._met.cut(count)
            raise
        self._met.add(value, taken)
        return taken

    def _new(self, value: Any) -> Taken:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if generators.is_generator(value):
            return ["random", generators.state_of(value)]
        if kind is GeneratorType:
            raise LostError("how far a generator has come cannot be set")
        if np is not None and isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        if kind in WRITTEN_AS:
            return ["text", kind.__name__, str(value)]
        if isinstance(value, Enum):
            return ["member", objects.name_of(kind), value.name]
        if isinstance(value, objects.NAMED):
            return self._named(value)
        number = next((base for base in (int, float, str) if isinstance(value, base)), None)
        if number is not None:
            return ["made from", objects.name_of(kind), number(value), *self._given(value)]
        if len(self.above) > _DEPTH:
            raise LostError("nested too deeply")
        self.above.append(id(value))
        try:
            return self._within(value, kind)
        finally:
            self.above.pop()

    def _named(self, value: Any) -> Taken:
        if objects.is_found(value):
            return ["named", objects.name_of(value)]
        if not self.above:
            raise LostError("it is made within a function")
        return LEFT

    def _within(self, value: Any, kind: type) -> Taken:
        if isinstance(value, torch.nn.Module):
            named = [*value.named_parameters(), *value.named_buffers()]
            return ["module", [[name, self._of_model(tensor)] for name, tensor in named]]
        if kind in ITERATORS:
            return self._iterator(value, kind)
        if values.is_next(value):
            return ["next", self.part(value.__self__)]
        base = objects.base_of(kind)
        if base is not None:
            return self._holder(value, kind, base)
        if objects.is_users_class(kind):
            return ["object", objects.name_of(kind), self._attributes(value)]
        if kind is caches.KIND:
            is_left = caches.is_left(value) or not caches.is_users(value)
            return LEFT if is_left else taken_hidden.take_cache(self, value)
        weak_kind = weak.kind_of(kind)
        if weak_kind is not None:
            return taken_hidden.take_weak(self, value, weak_kind)
        if standard.is_kind(kind):
            return self._contents(value)
        if foreign.is_librarys_class(kind):
            return self._of_library(value, kind)
        if isinstance(value, Placed):
            return LEFT if value.goes_on_by_itself() else ["placed", value.place()]
        if values.is_loader_iterator(kind):
            raise LostError("how far an iterator of a DataLoader has come cannot be set")
        return LEFT

    def _of_model(self, tensor: torch.Tensor) -> Taken:
        """A model has its own tensors: it is not given what lies elsewhere."""
        if self._left(tensor):
            return LEFT
        taken = self._tensor(tensor)
        if self._met is not None:
            self._met.add(tensor, taken)
        return taken

    def _of_library(self, value: Any, kind: type) -> Taken:
        self._libraries += 1
        try:
            simple, whole = foreign.simple_parts(value, self._libraries - 1)
            for name, part, tensors in foreign.tensor_parts(value):
                if not self._are_unwritten(tensors) and not all(map(self._left, tensors)):
                    simple[name] = part
            self.room.use(items=len(simple))
            return ["parts", objects.name_of(kind), [[name, self.part(part)] for name, part in simple.items()], whole]
        finally:
            self._libraries -= 1

    def _contents(self, value: Any) -> Taken:
        try:
            state = standard.contents(value)
        except ValueError:
            raise LostError("what is in it cannot be saved") from None
        self.room.use(sys.getsizeof(state))
        return ["contents", state]

    def _holder(self, value: Any, kind: type, base: type) -> Taken:
        self.room.use(items=len(value), size=8 * len(value))
        limit = value.maxlen if base is deque else None
        items: list[Any]
        form = "numbers"  # a history of losses has thousands
        if issubclass(base, dict):
            pairs = list(base.items(value))
            items = list(chain.from_iterable(pairs))
            simple = _NUMBERS.issuperset(map(type, items[1::2])) and _KEYS.issuperset(map(type, items[::2]))
            if not simple or any(map(self._ids.__contains__, items)):
                form, items = "holder", [[self.key(key), self.part(part)] for key, part in pairs]
        else:
            items = list(base.__iter__(value))  # type: ignore[attr-defined]
            if not _NUMBERS.issuperset(map(type, items)) or any(map(self._ids.__contains__, items)):
                form, items = "holder", [self.part(part) for part in items]
        name = attributes = None
        if kind is not base:
            name = objects.name_of(kind)
            attributes = self._attributes(value) if objects.is_users_class(kind) else []
        return [form, base.__name__, items, limit, name, attributes]

    def key(self, key: Any) -> Any:
        """Keys that another process does not have are known by their place, as [] here."""
        if type(key) is int and key in self._ids:
            return ["id of", self._ids[key]]
        if _is_key(key):
            return key
        if isinstance(key, Enum) or (isinstance(key, objects.NAMED) and objects.is_found(key)):
            return self.part(key)
        return []

    def _attributes(self, value: Any) -> list[Any]:
        held = objects.attributes(value)
        self.room.use(items=len(held))
        return [[name, self.part(part)] for name, part in list(held.items()) if isinstance(name, str)]

    def _tensor(self, tensor: torch.Tensor) -> Taken:
        if type(tensor) not in _TENSORS or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            if self.above and self._are_unwritten([tensor]):
                return LEFT
            raise LostError("a tensor of this kind or layout cannot be saved")
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None and gradient.layout != torch.strided:
            gradient = None
        self.room.use(tensor.nbytes + (0 if gradient is None else gradient.nbytes))
        leaf = tensor.is_leaf and tensor.requires_grad
        tensors = self._copy(tensor), str(tensor.device), leaf, self._copy(gradient)
        return ["tensor", *tensors, *self._given(tensor)]

    def _given(self, value: Any) -> list[Any]:
        """[attributes] that a script has given to a tensor, or to a number of a class of its own; []: none."""
        held = getattr(value, "__dict__", None)
        if not held or len(self.above) > _DEPTH:
            return []
        self.above.append(id(value))
        try:
            return [[[name, self.part(part)] for name, part in list(held.items()) if isinstance(name, str)]]
        finally:
            self.above.pop()

    def _copy(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return tensor if tensor is None or self._share else tensor.detach().clone()

    def _array(self, value: Any) -> Taken:
        kind = value.dtype.kind
        if kind == "O":
            raise LostError("an array of objects")
        if not (type(value) is np.ndarray or isinstance(value, np.generic)):
            raise LostError("an array of this kind cannot be saved")
        self.room.use(value.nbytes)
        if kind not in _NUMPY_KINDS:
            return ["records", value.tobytes(), list(value.shape), str(value.dtype)]
        return ["array", value if self._share else value.copy()]

    def _iterator(self, value: Any, kind: type) -> Taken:
        reduced = values.reduced(value)
        if reduced is None or kind in values.UNPLACED:
            raise LostError("how far it has come cannot be set")
        maker, arguments, state = reduced
        if kind in values.IN_LINE:
            held = arguments[0] if arguments else None
            if type(held) is range:
                return ["range", held.start, held.stop, held.step, state or 0]
            if len(self.above) == 1:  # its list is there, too
                return ["place", state if arguments and held not in ((), "") else None]  # None: it is at its end
        if maker is iter and len(arguments) == 1 and kind not in values.IN_LINE:  # what is left of a dict
            return ["iterator", "iter", [self.part(list(arguments[0]))], LEFT]
        parts, place = [self.part(part) for part in arguments], self.part(state)
        goes_on = [part for part, own in zip(parts, arguments, strict=True) if not callable(own)]
        if LEFT in goes_on or (place[0] == "holder" and LEFT in place[2]):
            return LEFT  # over what goes on by itself
        return ["iterator", maker.__name__, parts, place]


def _is_key(key: Any) -> bool:
    return type(key) in _KEYS or (type(key) is tuple and all(map(_is_key, key)))
