"""What `ff_core.state.captured` has taken, back into a script's own objects.

    value = Putter(known).put(live, taken, in_place=True)   # live: what the variable is now; value: what it has to be

in_place: `live` is written into, and what it has, too; others may hold the very object. Else something new is made, and
`live` gives only the parts that are not saved.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from ff_core.errors import FailoverError
from ff_core.state import generators, hidden, identities, objects, shared, standard, values
from ff_core.state.identities import Numbers
from ff_core.state.objects import GONE
from ff_core.state.placed import Placed
from ff_core.state.room import LostError, Taken
from ff_core.state.taken_hidden import LEFT
from ff_core.state.values import WRITTEN_AS, np

_BASES = {base.__name__: base for base in objects.BASES}
_TEXTS = {kind.__name__: kind for kind in WRITTEN_AS}
_APART = "it has parts that are not saved"


class Putter:
    """known: label -> the object that is known under it here, GONE: none.  parts: `shared.definitions()` of all that
    is put back.  ids: see `ff_core.state.identities`."""

    def __init__(
        self, known: Callable[[str], Any], parts: dict[int, Taken] | None = None, ids: Numbers | None = None
    ) -> None:
        self._known, self.parts = known, parts or {}
        self.ids = {name: number for number, name in (ids or {}).items()}
        self.made: dict[int, Any] = {}  # of what is shared
        self.number: int | None = None  # of the object that is put next
        self._used: dict[int, Any] = {}  # objects here that are something of the version again

    def put(self, live: Any, taken: Taken, *, in_place: bool) -> Any:
        """What the variable has to be. Raises LostError where `live` lacks what is not saved."""
        if taken[0] in shared.PLACED and in_place and live is not None:
            if id(live) in self._used:  # two objects of the version cannot both be this one
                live, in_place = None, False
            else:
                self._used[id(live)] = live
        put: Callable[[Any, Taken, bool], Any] = getattr(self, f"_put_{taken[0].replace(' ', '_')}")
        return put(live, taken, in_place)

    def _put_plain(self, live: Any, taken: Taken, in_place: bool) -> Any:
        value = taken[1]
        if type(value) is bytearray and type(live) is bytearray and in_place:
            live[:] = value
            return live
        return value

    def _put_left(self, live: Any, taken: Taken, in_place: bool) -> Any:
        return live

    def _put_known(self, live: Any, taken: Taken, in_place: bool) -> Any:
        found = self._known(taken[1])
        if found is GONE:
            raise LostError("it is not there")
        return found

    _put_shared, _put_same, _put_view = shared.put_shared, shared.put_same, shared.put_view
    _put_id_of = identities.put_id_of

    def _put_text(self, live: Any, taken: Taken, in_place: bool) -> Any:
        return WRITTEN_AS[_TEXTS[taken[1]]](taken[2])

    def _put_named(self, live: Any, taken: Taken, in_place: bool) -> Any:
        return objects.by_name(taken[1])

    def _put_member(self, live: Any, taken: Taken, in_place: bool) -> Any:
        kind: Any = objects.class_of(taken[1], live)
        if kind is None or taken[2] not in kind.__members__:
            raise LostError(f"{taken[1][1]}.{taken[2]} is not there")
        return kind[taken[2]]

    def _put_made_from(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, name, number, *attributes = taken
        kind = self._class(name, live)
        is_same = in_place and type(live) is kind and type(number)(live) == number
        return self._put_given(live if is_same else type(number).__new__(kind, number), attributes, is_same)

    def _put_tensor(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, value, device, leaf, gradient, *attributes = taken
        fits = isinstance(live, torch.Tensor) and (live.shape, live.dtype) == (value.shape, value.dtype)
        if in_place and fits and not live.is_inference():
            with torch.no_grad():
                live.copy_(value)
        else:
            live = value.to(torch.device(device), copy=True)
            live.requires_grad_(leaf)
        if live.is_leaf:
            live.grad = None if gradient is None else gradient.to(live.device, copy=True)
        return self._put_given(live, attributes, in_place and fits)

    def _put_given(self, made: Any, attributes: list[Any], in_place: bool) -> Any:
        for name, part in attributes[0] if attributes else ():
            given = self.put(made.__dict__.get(name), part, in_place=in_place)
            if given is not None or part[0] == "plain":
                made.__dict__[name] = given
        return made

    def _put_module(self, live: Any, taken: Taken, in_place: bool) -> Any:
        if not isinstance(live, torch.nn.Module):
            raise LostError("it is a model there")
        if not in_place:
            live = copy.deepcopy(live)
        held: dict[str, torch.Tensor] = dict([*live.named_parameters(), *live.named_buffers()])
        for name, part in taken[1]:
            if name not in held:
                raise LostError(f"its {name} is not there")
            self.put(held[name], part, in_place=True)
        return live

    def _put_random(self, live: Any, taken: Taken, in_place: bool) -> Any:
        try:
            if not generators.is_generator(live):
                return generators.new(taken[1])
            generators.set_state(live, taken[1])
        except (AttributeError, IndexError, TypeError, ValueError):
            raise LostError("it is another kind of generator there") from None
        return live

    def _put_array(self, live: Any, taken: Taken, in_place: bool) -> Any:
        value = taken[1]
        both = type(live) is type(value) is np.ndarray
        if in_place and both and (live.shape, live.dtype) == (value.shape, value.dtype):
            live[...] = value
            return live
        return value.copy()

    def _put_records(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, data, shape, dtype = taken
        if type(live) is not np.ndarray or str(live.dtype) != dtype:
            raise LostError(f"it is an array of {dtype} there")
        return self._put_array(live, ["array", np.frombuffer(data, dtype=live.dtype).reshape(shape)], in_place)

    # ---- iterators ---------------------------------------------------------------------------------------------------

    def _put_place(self, live: Any, taken: Taken, in_place: bool) -> Any:
        if type(live) not in values.IN_LINE:
            raise LostError("it is an iterator there")
        if taken[1] is None:
            deque(live, maxlen=0)
        else:
            live.__setstate__(taken[1])
        return live

    def _put_placed(self, live: Any, taken: Taken, in_place: bool) -> Any:
        """One that another rank's script has made as well."""
        if not isinstance(live, Placed):
            raise LostError("no such iterator is there")
        try:
            live.go_to(taken[1])
        except FailoverError as error:
            raise LostError(str(error)) from None
        return live

    def _put_range(self, live: Any, taken: Taken, in_place: bool) -> Any:
        made = iter(range(*taken[1:4]))
        made.__setstate__(taken[4])  # type: ignore[attr-defined]
        return made

    def _put_span(self, live: Any, taken: Taken, in_place: bool) -> Any:
        return range(*taken[1:])

    def _put_iterator(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, maker, parts, state = taken
        reduced = values.reduced(live) if type(live) in values.ITERATORS else None
        now: Any = [None] * len(parts)
        if reduced is not None and (reduced[0].__name__, len(reduced[1])) == (maker, len(parts)):
            now = reduced[1]
        if any(part == LEFT and own is None for own, part in zip(now, parts, strict=True)):
            raise LostError(_APART)
        made = values.MAKERS[maker](
            *[self.put(own, part, in_place=False) for own, part in zip(now, parts, strict=True)]
        )
        place = self.put(None, state, in_place=False)
        if place is not None:
            made.__setstate__(place)
        return made

    def _put_next(self, live: Any, taken: Taken, in_place: bool) -> Any:
        own = live.__self__ if values.is_next(live) else None
        made = self.put(own, taken[1], in_place=in_place)
        return live if made is own else made.__next__

    # ---- containers and objects --------------------------------------------------------------------------------------

    def _put_holder(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, name, items, limit, kind_name, attributes = taken
        base = _BASES[name]
        kind: Any = base if kind_name is None else self._class(kind_name, live)
        is_same = type(live) is kind and (base is not deque or live.maxlen == limit)
        if issubclass(base, dict):
            made = self._put_dict(live, base, kind, items, is_same, in_place)
        else:
            made = self._put_items(live, base, kind, items, limit, is_same, in_place)
        if attributes:
            self._put_attributes(live if is_same else None, made, attributes, in_place and made is live)
        return made

    def _put_numbers(self, live: Any, taken: Taken, in_place: bool) -> Any:
        _, name, entries, *others = taken
        items: list[Any] = [["plain", number] for number in entries]
        if issubclass(_BASES[name], dict):
            items = [[key, part] for key, part in zip(entries[::2], items[1::2], strict=True)]
        return self._put_holder(live, ["holder", name, items, *others], in_place)

    def _put_dict(self, live: Any, base: Any, kind: type, items: list[Any], is_same: bool, in_place: bool) -> Any:
        if base.__name__ == "defaultdict" and not is_same:
            raise LostError("it is a defaultdict there")
        held: dict[Any, Any] = dict(base.items(live)) if is_same else {}
        pairs = []
        for number, (written, part) in enumerate(items):
            key = self._key(written, number, held, len(items))
            if part[0] == "left" and key not in held:
                raise LostError(_APART)
            pairs.append((key, self.put(held.get(key), part, in_place=in_place)))
        made = live if is_same and in_place else base.__new__(kind)
        if base.__name__ == "defaultdict":
            made.default_factory = live.default_factory
        base.clear(made)
        for key, value in pairs:
            base.__setitem__(made, key, value)
        return made

    def _key(self, written: Any, number: int, held: dict[Any, Any], count: int) -> Any:
        if type(written) is not list:
            return written
        if written:
            return self.put(None, written, in_place=False)
        if len(held) != count:
            raise LostError("its keys cannot be saved")
        return list(held)[number]

    def _put_items(
        self, live: Any, base: Any, kind: type, items: list[Any], limit: int | None, is_same: bool, in_place: bool
    ) -> Any:
        in_order = is_same and base not in (set, frozenset)
        now = list(base.__iter__(live)) if in_order else []
        if any(part[0] == "left" for part in items[len(now) :]):
            raise LostError(_APART)
        own = [*now[: len(items)], *[None] * (len(items) - len(now))]
        parts = [self.put(one, part, in_place=in_place) for one, part in zip(own, items, strict=True)]
        if base in (tuple, frozenset):
            kept = in_place and in_order and len(now) == len(parts) and all(map(_is, parts, now))
            return live if kept else base.__new__(kind, parts)
        made = live if is_same and in_place else base.__new__(kind)
        if made is not live and base is deque:
            deque.__init__(made, (), limit)
        base.clear(made)
        (base.update if base is set else base.extend)(made, parts)
        return made

    def _put_object(self, live: Any, taken: Taken, in_place: bool) -> Any:
        kind = self._class(taken[1], live)
        is_same = type(live) is kind
        made = live if in_place and is_same else objects.new(kind)
        if self.number is not None:  # what it has may refer to it
            self.made[self.number], self.number = made, None
        self._put_attributes(live if is_same else None, made, taken[2], made is live)
        return made

    def _put_contents(self, live: Any, taken: Taken, in_place: bool) -> Any:
        """The very object: others share it."""
        if not standard.put_contents(live, taken[1]):
            raise LostError("it is of another kind or size there")
        return live

    _put_cache, _put_weak = hidden.put_cache, hidden.put_weak

    def _put_parts(self, live: Any, taken: Taken, in_place: bool) -> Any:
        """Of a library's object. One that is another each time keeps what it has, unless it can be made."""
        _, name, attributes, whole = taken
        is_same = objects.name_of(type(live)) == name
        if not whole and not is_same:
            raise LostError(_APART)
        if not whole and not in_place:
            return live
        made = live if in_place and is_same else objects.new(self._class(name, live))
        held = dict(objects.attributes(made))
        for attribute, part in attributes:
            objects.assign(made, attribute, self.put(held.get(attribute), part, in_place=made is live))
        return made

    def _put_attributes(self, live: Any, made: Any, attributes: list[Any], in_place: bool) -> None:
        held = {} if live is None else dict(objects.attributes(live))
        for name, part in attributes:
            if part[0] == "left" and name not in held:
                if live is None:
                    raise LostError(f"its {name} is not saved")
                continue
            objects.assign(made, name, self.put(held.get(name), part, in_place=in_place))
        if made is live:
            for name in held.keys() - {name for name, _ in attributes}:
                objects.remove(made, name)

    def _class(self, name: objects.Name, live: Any) -> type:
        found = objects.class_of(name, live)
        if found is None:
            raise LostError(f"the class {name[1]} is not there")
        return found


def _is(one: Any, other: Any) -> bool:
    return one is other
