"""Objects of Python's library that have contents: what of them can be saved, and put back into the very object.

`array.array`, texts and bytes in memory, queues, numbers and events that processes share, where a file that is read
stands, a ConfigParser, a database in memory, what coroutines wait for, and threads in a script without any.
"""

from __future__ import annotations

import array
import ctypes
import gc
import io
import marshal
import queue
import sys
import weakref
from collections.abc import Callable
from multiprocessing.sharedctypes import SynchronizedBase
from threading import Event, Semaphore
from threading import enumerate as threads
from typing import Any, NamedTuple

from ff_core.state import frames, objects

_POINTERS = "OPzZ"
_MOST_DATABASE = 1 << 20  # bytes
_between_threads: weakref.WeakSet[Any] = weakref.WeakSet()


class _Kind(NamedTuple):
    """take: what `put` needs: plain values in lists. put: into an object of the kind.  mark: of its contents, where
    take() takes long."""

    take: Callable[[Any], Any]
    put: Callable[[Any, Any], None]
    mark: Callable[[Any], Any] | None = None


def _put_array(live: Any, state: Any) -> None:
    del live[:]
    live.frombytes(state[1])


def _put_text(live: Any, state: Any) -> None:
    live.seek(0)
    live.truncate()
    live.write(state[0])
    live.seek(state[1])


def _put_queue(live: Any, state: Any) -> None:
    if state is None:
        return
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
    while state is not None and not live.empty():
        live.get_nowait()
    for item in state or ():
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


def threads_of_script() -> list[str]:
    """Names of the functions that run in them. What they wait for is between them and the training thread."""
    targets = [getattr(thread, "_target", None) or thread.run for thread in threads()[1:]]
    functions = [function for function in (getattr(t, "__func__", t) for t in targets) if hasattr(function, "__code__")]
    return [f.__qualname__ for f in functions if frames.is_users(f.__code__.co_filename, f.__module__)]


def _is_between_threads(value: Any) -> bool:
    """Whether the script has had threads since `value` was first looked at."""
    if threads_of_script():
        _between_threads.add(value)
    return value in _between_threads


def _between(take: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """None in place of what is between threads: they fill and empty it themselves."""
    return lambda value: None if _is_between_threads(value) else take(value)


def _put_event(live: Event, state: Any) -> None:
    if state is not None:
        (live.set if state else live.clear)()


def _put_semaphore(live: Any, state: Any) -> None:
    if state is not None:
        with live._cond:
            live._value = state
            live._cond.notify_all()


def _put_count(live: Any, state: Any) -> None:
    live._value = state


def _put_shared_count(live: Any, state: Any) -> None:
    while live.get_value() > state and live.acquire(False):
        pass
    while live.get_value() < state:
        live.release()


def _put_coroutines_queue(live: Any, state: Any) -> None:
    if live._getters or live._putters:
        raise ValueError("a coroutine waits for it")
    live._queue.clear()
    live._queue.extend(state[0])
    live._unfinished_tasks = state[1]
    (live._finished.clear if state[1] else live._finished.set)()


def _database(value: Any) -> Any:
    """Of a connection to one in memory; None: it is in a file, or closed. Raises ValueError for a large one."""
    if _written(value) is None:
        return None
    size = value.execute("PRAGMA page_count").fetchone()[0] * value.execute("PRAGMA page_size").fetchone()[0]
    if size > _MOST_DATABASE:
        raise ValueError("it is large")
    if not hasattr(value, "serialize"):
        raise ValueError("Python 3.10 cannot copy it")
    return [value.serialize(), value.in_transaction]


def _written(value: Any) -> int | None:
    """How many rows were written to one in memory."""
    try:
        in_memory = not any(file for _, _, file in value.execute("PRAGMA database_list"))
    except value.Error:  # closed, or of another thread
        return None
    return int(value.total_changes) if in_memory else None


def _put_database(live: Any, state: Any) -> None:
    if state is not None:
        live.rollback()
        live.deserialize(state[0])
        if state[1]:
            live.execute("BEGIN")


def _sections(value: Any) -> Any:
    return [[name, *map(list, held.items())] for name, held in [("", value._defaults), *value._sections.items()]]


def _put_sections(live: Any, state: Any) -> None:
    for name in live.sections():
        live.remove_section(name)
    live.defaults().clear()
    for name, *options in state:
        if name:
            live.add_section(name)
        (live._sections[name] if name else live.defaults()).update(options)


_TEXT = _Kind(lambda value: [value.getvalue(), value.tell()], _put_text)
_SHARED = _Kind(lambda value: bytes(_memory(value)), _put_shared)
_FILE = _Kind(_place, _put_place)
_KINDS: tuple[tuple[type, _Kind], ...] = (
    (memoryview, _SHARED),
    (array.array, _Kind(lambda value: [value.typecode, value.tobytes()], _put_array)),
    (io.StringIO, _TEXT),
    (io.BytesIO, _TEXT),
    (queue.Queue, _Kind(_between(lambda value: [list(value.queue), value.unfinished_tasks]), _put_queue)),
    (queue.SimpleQueue, _Kind(_between(_waiting), _put_simple_queue)),
    (ctypes.Array, _SHARED),
    (ctypes._SimpleCData, _SHARED),
    (SynchronizedBase, _SHARED),
    (io.TextIOWrapper, _FILE),
    (io.BufferedReader, _FILE),
    (Event, _Kind(_between(Event.is_set), _put_event)),
    (Semaphore, _Kind(_between(lambda value: value._value), _put_semaphore)),
)  # fmt: skip
#: By the name of the class: their modules need not be imported.
_NAMED: dict[str, _Kind] = {
    "asyncio.locks.Event": _Kind(lambda value: value.is_set(), _put_event),
    "asyncio.locks.Semaphore": _Kind(lambda value: value._value, _put_count),
    "asyncio.queues.Queue": _Kind(lambda value: [list(value._queue), value._unfinished_tasks], _put_coroutines_queue),
    "configparser.RawConfigParser": _Kind(_sections, _put_sections),
    "sqlite3.Connection": _Kind(_database, _put_database, _written),
    "multiprocessing.synchronize.Event": _Kind(lambda value: value.is_set(), _put_event),
    "multiprocessing.synchronize.Semaphore": _Kind(lambda value: value.get_value(), _put_shared_count),
}


@objects.cached
def _kind_of(kind: type) -> _Kind | None:
    held = next((held for base, held in _KINDS if issubclass(kind, base)), None)
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    held = held or next((_NAMED[name] for name in names if name in _NAMED), None)
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
    held = _kind_of(type(value))
    if held is not None and held.mark is not None:
        return held.mark(value)
    try:
        state = _state(value)
    except ValueError:  # they are not known
        return None
    try:
        return hash(marshal.dumps(state))
    except ValueError:  # of something
        return hash(repr(state))


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
