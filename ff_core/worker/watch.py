"""What a spare's imports must not read: answers that only the rank has, which a module would keep for good.

A library may look RANK up when it is imported. In a spare there is none, and the library would keep the default when
the spare becomes rank 3. While a spare imports ahead, such reads are therefore noticed, and so is an import that
would find the user's own file in the rank. The process is then *unfit*: it starts afresh and leaves out those modules
and all that import them.

What C or C++ code reads by getenv() is not seen; ff_core.worker.compiled looks for libraries that might. Nor is what
another process makes of its environment (ff_core.worker.children).
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType
from typing import Any

from ff_core.contract.env import EVERYTHING, RANK_VARIABLES
from ff_core.state.frames import FRAMEWORKS
from ff_core.worker import children, compiled

#: Read by libraries written in C or C++ when they are loaded: a value that the script sets before its imports would
#: come too late for a spare.
_READ_AT_LOAD = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "ATEN_", "ONEDNN_", "DNNL_", "MALLOC_",
)  # fmt: skip
_SETS = "reads or sets {name}, which the script sets, while it is imported; set it before `fftrain run` instead"


class NotAhead(BaseException):
    """This import has to wait for the rank. Not an Exception: a module that can do without the other one would take it
    for missing."""


def digest(value: str | None) -> str:
    """Equal for equal values; "" for a variable that is not set. The value itself may be a secret."""
    return "" if value is None else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]


class Watch:
    """Watches os.environ and the imports of one preload.

    without: modules that have to wait for the rank (of an earlier attempt).  script_dir: where the script's own modules
    lie, or None.  changed: what the script of a live rank has made of its environment, name -> digest.
    paths: where that rank's imports look, in order (its sys.path); empty: not known.

    found: module or call -> why it has to wait. Not empty: the process is unfit.
    """

    def __init__(
        self, without: Iterable[str], script_dir: str | None, changed: Mapping[str, str], paths: Sequence[str] = ()
    ) -> None:
        self.without, self.script_dir, self.changed, self.paths = frozenset(without), script_dir, changed, paths
        self.found: dict[str, str] = {}
        self.current = ""
        self._drawn: dict[str, int] = {}
        self._group: tuple[Any, str, property] | None = None  # torch's own, while it is watched
        self._perhaps: list[tuple[str, list[str]]] = []
        self._copies: list[tuple[weakref.ref[_Unread], str, list[str]]] = []

    def waits(self, module: str) -> bool:
        """`module` or a package that it is in has to wait."""
        parts = module.split(".")
        return EVERYTHING in self.without or any(".".join(parts[:n]) in self.without for n in range(1, len(parts) + 1))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The imports and calls to be watched; afterwards the environment is the usual one again."""
        classes = type(os.environ), type(os.environb)
        guard = _Guard(self)
        os.environ.__class__ = _watched(self, fakes=True)  # in place: others hold it by name
        os.environb.__class__ = _watched(self, fakes=False)
        sys.meta_path.insert(0, guard)
        try:
            with compiled.watched(self.loaded), children.started_without(_Unread):
                yield
        finally:
            if self._group is not None:
                setattr(*self._group)
            sys.meta_path.remove(guard)
            os.environ.__class__, os.environb.__class__ = classes
        self._judge_variables()

    def _watch_groups(self) -> None:
        """The rank may have had groups by then: a module that asks for its rank there gets another answer here."""
        module = sys.modules.get("torch.distributed.distributed_c10d")
        if self._group is not None or module is None or not hasattr(module, "GroupMember"):
            return
        kind: Any = type(module.GroupMember)  # all that asks comes to this property of torch's
        group: property = vars(kind)["WORLD"]
        self._group = kind, "WORLD", group

        def asked(groups: Any) -> Any:
            importing = _importing()
            if importing and importing[0].split(".", 1)[0] not in FRAMEWORKS:
                self._found(importing, "asks torch.distributed for its group while it is imported")
            return group.__get__(groups)

        kind.WORLD = property(asked, group.fset)

    def begin(self, name: str) -> None:
        """`name`, a module or call, is about to be done."""
        self.current, self._drawn = name, _random_states()
        self._watch_groups()

    def end(self) -> None:
        """It is done: whoever copied the environment and still has the copy has a rank's variables in it. A module
        that drew random numbers has others than in the rank, whose script may have set a seed before."""
        now = _random_states()
        if ":" not in self.current and any(now[of] != state for of, state in self._drawn.items()):
            self._found([self.current], "draws random numbers while it is imported")
        if self._copies and any(ref() is not None for ref, _, _ in self._copies):
            gc.collect()
        for ref, name, importing in self._copies:
            if ref() is not None:
                self._found(importing, f"keeps a copy of the environment, with {name}, from its import")
        self._copies.clear()

    def touched(self, name: str) -> None:
        """Somebody reads or sets the variable `name`."""
        if name in RANK_VARIABLES:
            self._found(_importing(), f"reads or sets {name} while it is imported")
        elif name in self.changed:
            self._perhaps.append((name, _importing()))

    def copy_of(self, name: str) -> _Unread:
        """A stand-in for the value of `name` where somebody reads all variables, most likely for others among them."""
        importing = _importing()
        value = _Unread("0", lambda: self._found(importing, f"reads {name} while it is imported"))
        self._copies.append((weakref.ref(value), name, importing))
        return value

    def loaded(self, module: str | None, path: str, name: str) -> None:
        """`module`, or a library that is being imported, has loaded compiled code that may read the variable `name`."""
        outer = _importing()
        self._found(outer if module is None else [module, *outer], f"loads {path}, which may read {name} then")

    def refuse(self, module: str, reason: str) -> None:
        """Raise NotAhead for the import of `module`: whoever imports it has to wait too."""
        self._found(_importing(), reason)
        raise NotAhead(module)

    def _found(self, importing: Sequence[str], reason: str) -> None:
        names = list(importing) or [self.current]
        self.found.setdefault(names[0], reason)
        for name in names[1:]:
            self.found.setdefault(name, f"imports {names[0]}")

    def _judge_variables(self) -> None:
        """Now that all is imported: what has the rank's value was set by a library itself, here as there."""
        differing = {name for name, there in self.changed.items() if digest(os.environ.get(name)) != there}
        for name, importing in self._perhaps:
            if name in differing:
                self._found(importing, _SETS.format(name=name))
        for name in sorted(differing):
            if name.startswith(_READ_AT_LOAD):
                self.found[EVERYTHING] = f"the script itself sets {name}, which libraries read when they are loaded"


class _Guard(MetaPathFinder):
    """Asked first about every import; finds nothing itself."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        watch = self._watch
        if watch.waits(name):
            watch.refuse(name, f"imports {name}")
        spec = self._scripts(name, path)
        if spec is not None and spec.origin is not None:
            watch.refuse(name, f"imports {name}, which is the script's own {spec.origin}")

    def _scripts(self, name: str, path: Any) -> ModuleSpec | None:
        """What the rank would find as `name`, if only the script knows where that lies."""
        outer, _, _ = name.rpartition(".")
        spec = getattr(sys.modules.get(outer), "__spec__", None)
        if name in sys.builtin_module_names or (outer and (spec is None or spec.origin is not None)):
            return None  # in a package, which has a file of its own
        if not outer and self._watch.script_dir is not None:
            spec = PathFinder.find_spec(name, [self._watch.script_dir])
            if spec is not None and spec.origin is not None:
                return spec
        there = PathFinder.find_spec(name, [str(Path(place, *outer.split("."))) for place in self._watch.paths])
        here = PathFinder.find_spec(name, path)
        return None if there is None or (here is not None and here.origin == there.origin) else there


def _random_states() -> dict[str, int]:
    """Of the generators that a script seeds, as far as they have been imported."""
    states = {"random": hash(random.getstate())}
    if "numpy.random" in sys.modules:
        bits = sys.modules["numpy.random"].get_state(legacy=False)["state"]
        states["numpy"] = hash((bits["key"].tobytes(), bits["pos"]) if "key" in bits else repr(bits))
    if "torch" in sys.modules:
        states["torch"] = hash(sys.modules["torch"].default_generator.get_state().numpy().tobytes())
    return states


def _importing() -> list[str]:
    """Modules that this thread is importing, innermost first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "ff_core.worker.preload":
        if frame.f_code.co_name == "<module>":
            names.append(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return names


def _watched(watch: Watch, fakes: bool) -> type:
    """The class of os.environ, or (fakes: False) of os.environb, while it is watched."""

    class Watched(os._Environ):
        offered: set[str] = set()  # names that an iteration has given out, but that are not there

        def __getitem__(self, key: Any) -> Any:
            if key in Watched.offered:
                Watched.offered.discard(key)
                return watch.copy_of(key)
            return self._real(key)

        def _real(self, key: Any) -> Any:
            if isinstance(key, (str, bytes)):
                watch.touched(os.fsdecode(key))
            return super().__getitem__(key)

        def get(self, key: Any, default: Any = None) -> Any:
            try:
                return self._real(key)
            except KeyError:
                return default

        def __contains__(self, key: Any) -> bool:
            return self.get(key) is not None

        def __setitem__(self, key: Any, value: Any) -> None:
            watch.touched(os.fsdecode(key))
            super().__setitem__(key, value)

        def __delitem__(self, key: Any) -> None:
            watch.touched(os.fsdecode(key))
            super().__delitem__(key)

        def __iter__(self) -> Iterator[Any]:
            # First, so that no loop's variable is left with one of them. dict() takes all names before it asks for a
            # value.
            for name in RANK_VARIABLES if fakes else ():
                if self.encodekey(name) not in self._data:  # type: ignore[attr-defined]
                    Watched.offered.add(name)
                    yield name
            yield from super().__iter__()

    return Watched


class _Unread(str):
    """A text that tells when it is used."""

    _used: Callable[[], None]

    def __new__(cls, text: str, used: Callable[[], None]) -> _Unread:
        made = super().__new__(cls, text)
        str.__setattr__(made, "_used", used)
        return made

    def __getattribute__(self, name: str) -> Any:
        str.__getattribute__(self, "_used")()
        return str.__getattribute__(self, name)


def _noted(name: str, number: type | None = None) -> Callable[..., Any]:
    def method(self: _Unread, *arguments: Any) -> Any:
        str.__getattribute__(self, "_used")()
        text = str.__str__(self)
        return number(text) if number is not None else getattr(text, name)(*arguments)

    return method


for _name in (
    "__add__", "__contains__", "__eq__", "__format__", "__ge__", "__getitem__", "__gt__", "__hash__", "__iter__",
    "__le__", "__len__", "__lt__", "__mod__", "__mul__", "__ne__", "__repr__", "__rmul__", "__str__",
):  # fmt: skip
    setattr(_Unread, _name, _noted(_name))
for _name, _number in (("__int__", int), ("__float__", float)):
    setattr(_Unread, _name, _noted(_name, _number))
