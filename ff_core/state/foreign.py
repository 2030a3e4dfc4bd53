"""Objects that the script did not bring the class of: what of them can be saved, and put back into the very object.

Of Python's library: `array.array`, texts and bytes in memory, queues, numbers that processes share, where a file that
is read stands, events and semaphores of a script without threads. Of other libraries: the simple attributes of an
object, such as a meter's sum and count, its random generators, its tensors and models, and those of objects that it
has, two deep. What else such an object has is left as it is.
"""

from __future__ import annotations

import array
import ctypes
import gc
import io
import marshal
import queue
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import SynchronizedBase
from threading import Event, Semaphore, Thread
from threading import enumerate as threads
from typing import Any, NamedTuple

import torch

from ff_core.state import frames, generators, objects

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_MOST_ENTRIES = 2000  # of a list or dict that is an attribute
_MOST_BYTES = 1 << 20  # of an array or a tensor that is one
_DEPTH = 2  # objects in objects of a library
_MOST_OBJECTS = 32  # in a list or dict of it
_ACTIVE = (Thread, BaseProcess, io.IOBase, socket.socket)
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_POINTERS = "OPzZ"
#: They go on by themselves, save themselves, or are looked at otherwise.
_COUNTED = frozenset({"torch.quasirandom"})  # modules of those whose objects count
PACKAGES = frozenset({"torch", "numpy", "datasets", "tokenizers", *frames.FRAMEWORKS})


class _Kind(NamedTuple):
    """take: what `put` needs: plain values in lists. put: into an object of the kind."""

    take: Callable[[Any], Any]
    put: Callable[[Any, Any], None]


def _put_array(live: Any, state: Any) -> None:
    del live[:]
    live.frombytes(state[1])


def _put_text(live: Any, state: Any) -> None:
    live.seek(0)
    live.truncate()
    live.write(state[0])
    live.seek(state[1])


def _put_queue(live: Any, state: Any) -> None:
    with live.mutex:
        live.queue.clear()
        live.queue.extend(state[0])
        live.unfinished_tasks = state[1]


def _waiting(value: queue.SimpleQueue[Any]) -> list[Any]:
    """What is in one, in order. Only the garbage collector tells. Raises ValueError if it does not."""
    referents = [part for part in gc.get_referents(value) if part is not type(value)]
    if sys.version_info < (3, 13):  # a list, the first entries of which have been taken
        (referents,) = referents
    count = value.qsize()
    if count > len(referents):
        raise ValueError("what is in it is not known")
    return referents[len(referents) - count :]


def _put_simple_queue(live: queue.SimpleQueue[Any], state: Any) -> None:
    while not live.empty():
        live.get_nowait()
    for item in state:
        live.put(item)


def _memory(value: Any) -> memoryview:
    held = memoryview(value.get_obj() if isinstance(value, SynchronizedBase) else value)
    return held if held.format == "B" and held.ndim == 1 else held.cast("B")


def _put_shared(live: Any, state: Any) -> None:
    _memory(live)[:] = state


def _place(file: Any) -> Any:
    """Of a file that is only read; None: of another."""
    if file.closed or file.writable() or not file.seekable():
        return None
    try:
        return [file.tell()]
    except OSError:  # a text that is read by next()
        return [None, file.buffer.tell()]


def _put_place(live: Any, state: Any) -> None:
    if state is not None and state != _place(live):
        if state[0] is None:
            raise ValueError("a text that is read by next() does not say where it is")
        live.seek(state[0])


def _has_threads() -> bool:
    """Whether the script has. What they wait for is between them and the training thread."""
    targets = [getattr(thread, "_target", None) or thread.run for thread in threads()[1:]]
    codes = [getattr(getattr(target, "__func__", target), "__code__", None) for target in targets]
    return any(code is not None and frames.is_users(code.co_filename, None) for code in codes)


def _put_event(live: Event, state: Any) -> None:
    if state is not None:
        (live.set if state else live.clear)()


def _put_semaphore(live: Any, state: Any) -> None:
    if state is not None:
        with live._cond:
            live._value = state
            live._cond.notify_all()


_TEXT = _Kind(lambda value: [value.getvalue(), value.tell()], _put_text)
_SHARED = _Kind(lambda value: bytes(_memory(value)), _put_shared)
_FILE = _Kind(_place, _put_place)
_KINDS: tuple[tuple[type, _Kind], ...] = (
    (memoryview, _SHARED),
    (array.array, _Kind(lambda value: [value.typecode, value.tobytes()], _put_array)),
    (io.StringIO, _TEXT),
    (io.BytesIO, _TEXT),
    (queue.Queue, _Kind(lambda value: [list(value.queue), value.unfinished_tasks], _put_queue)),
    (queue.SimpleQueue, _Kind(_waiting, _put_simple_queue)),
    (ctypes.Array, _SHARED),
    (ctypes._SimpleCData, _SHARED),
    (SynchronizedBase, _SHARED),
    (io.TextIOWrapper, _FILE),
    (io.BufferedReader, _FILE),
    (Event, _Kind(lambda value: None if _has_threads() else value.is_set(), _put_event)),
    (Semaphore, _Kind(lambda value: None if _has_threads() else value._value, _put_semaphore)),
)  # fmt: skip


@objects.cached
def _kind_of(kind: type) -> _Kind | None:
    held = next((held for base, held in _KINDS if issubclass(kind, base)), None)
    points = getattr(kind, "_type_", "")
    return None if isinstance(points, str) and points and points in _POINTERS else held


def is_kind(kind: type) -> bool:
    """One of Python's library that has contents."""
    return _kind_of(kind) is not None


def _state(value: Any) -> Any:
    held = _kind_of(type(value))
    assert held is not None
    return held.take(value)


def contents(value: Any) -> Any:
    """Of such an object: nested lists of plain values. Raises ValueError where something else is in it."""
    state = _state(value)
    marshal.dumps(state)  # the proof
    return state


def mark(value: Any) -> Any:
    """Another one, in this process, if the contents are others."""
    try:
        return hash(marshal.dumps(_state(value)))
    except ValueError:  # a queue of something
        return [id(item) for item in (list(value.queue) if isinstance(value, queue.Queue) else _waiting(value))]


def put_contents(live: Any, state: Any) -> bool:
    """Whether `live` is of a kind that could take `contents()`."""
    held = _kind_of(type(live))
    if held is None or (isinstance(live, array.array) and live.typecode != state[0]):
        return False
    try:
        held.put(live, state)
    except (TypeError, ValueError):  # another kind, or of another size
        return False
    return True


@objects.cached
def is_librarys_class(kind: type) -> bool:
    """Whether objects of `kind` come from a library that is none of the frameworks, and have attributes."""
    package = str(kind.__module__).split(".", 1)[0]
    return (
        bool(kind.__dictoffset__)
        and (package not in PACKAGES or kind.__module__ in _COUNTED)
        and package not in sys.stdlib_module_names
        and not objects.is_users_class(kind)
        and not issubclass(kind, objects.NO_OBJECTS)
        and objects.base_of(kind) is None
        and not is_kind(kind)
    )


def simple_parts(value: Any, depth: int = 0) -> tuple[dict[str, Any], bool]:
    """Attributes of a library's object that are plain, small arrays, or containers of plain values, or such objects in
    their turn, alone or in a list or dict, or random generators; whether it has no others. depth: of `value` in
    another such object."""
    held = objects.attributes(value)
    simple = {name: part for name, part in list(held.items()) if _is_simple(part, depth)}
    return simple, len(simple) == len(held)


def tensor_parts(value: Any) -> Iterator[tuple[str, Any, list[torch.Tensor]]]:
    """(name, value, tensors) of attributes that are no simple part, and are tensors: an average of all weights has a
    list of them."""
    for name, part in list(objects.attributes(value).items()):
        if isinstance(part, torch.Tensor):
            if not _is_simple(part, 0):
                yield name, part, [part]
        elif type(part) in (list, tuple, dict):
            items = list(part.values()) if type(part) is dict else list(part)
            if items and all(isinstance(item, torch.Tensor) for item in items) and not _is_simple(part, 0):
                yield name, part, items


def _is_simple(part: Any, depth: int) -> bool:
    kind = type(part)
    if kind in _PLAIN or generators.is_generator(part):
        return True
    if is_librarys_class(kind):
        return depth < _DEPTH and not goes_on_by_itself(part)
    if kind is torch.Tensor:
        return not part.requires_grad and not part.is_meta and part.nbytes <= _MOST_BYTES
    if np is not None and kind is np.ndarray:
        return part.dtype.kind != "O" and part.nbytes <= _MOST_BYTES
    base = objects.base_of(kind)
    if base is not kind or len(part) > _MOST_ENTRIES:
        return False
    return objects.marshalled(part, base) is not None or (depth < _DEPTH and _has_objects(part, depth))


def _has_objects(held: Any, depth: int) -> bool:
    """A list or dict of a library's objects, or of tensors, and of plain values."""
    items = list(held.values()) if isinstance(held, dict) else list(held)
    keys = held if isinstance(held, dict) else ()
    return (
        isinstance(held, (list, tuple, dict))
        and 0 < len(items) <= _MOST_OBJECTS
        and all(type(key) in _PLAIN for key in keys)
        and all(_is_simple(part, depth + 1) for part in items)
    )


def goes_on_by_itself(value: Any) -> bool:
    """Whether it has a thread, a process, a file or a socket: what it counts belongs to what these do."""
    return any(isinstance(part, _ACTIVE) for part in list(objects.attributes(value).values()))
