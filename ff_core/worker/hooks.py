"""Import hooks: run a function of ours right after a module that we do not control has been imported.

This is how an unmodified script is protected: nothing is imported on its behalf, and what it never imports is never
touched. The loader and the spec that the module ends up with are its own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def resolve(name: str) -> Callable[..., Any]:
    """The function "package.module:function" (may be dotted). Raises ValueError, ImportError or AttributeError."""
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise ValueError(f'{name!r}: allowed: "package.module:function"')
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, not a function")
    return found


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace the function owner.name (of a class or a module) by one that calls around(original, *args, **kwargs)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, hooked)


def _prefixes(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _is_complete(module: str) -> bool:
    """Whether `module` has been imported, and no package around it is still being imported."""
    for name in _prefixes(module):
        loaded = sys.modules.get(name)
        if loaded is None or getattr(getattr(loaded, "__spec__", None), "_initializing", False):
            return False
    return True


class _Loader(Loader):
    """Stands in for a module's own loader until it executes the module."""

    def __init__(self, own: Any, executed: Callable[[str], None]) -> None:
        self._own = own
        self._executed = executed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec) if hasattr(self._own, "create_module") else None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        self._executed(module.__name__)


class _Finder(MetaPathFinder):
    """First on sys.meta_path; for the modules waited for it finds what the other finders find and wraps the loader."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[tuple[str, str]] = []

    def add(self, module: str, callback: str) -> None:
        with self._lock:
            if not _is_complete(module):
                self._waiting.append((module, callback))
                if self not in sys.meta_path:
                    sys.meta_path.insert(0, self)
                return
        resolve(callback)()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        with self._lock:
            wanted = any(fullname in _prefixes(module) for module, _ in self._waiting)
        if not wanted:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._executed)
                return spec
        return None

    def _executed(self, name: str) -> None:
        """`name` has run. Fires what waits for it, or for a module inside it that was imported meanwhile.

        A package's own import often imports its submodules. Their callbacks wait for the package: before that, half of
        what they may use is missing. importlib clears `_initializing` only after the loader returns, so `name` itself
        is taken as done here.
        """
        due: list[str] = []
        with self._lock:
            for module, callback in list(self._waiting):
                if name in _prefixes(module) and self._complete_but_for(module, name):
                    self._waiting.remove((module, callback))
                    due.append(callback)
        for callback in due:
            resolve(callback)()

    @staticmethod
    def _complete_but_for(module: str, done: str) -> bool:
        for name in _prefixes(module):
            loaded = sys.modules.get(name)
            if loaded is None:
                return False
            if name != done and getattr(getattr(loaded, "__spec__", None), "_initializing", False):
                return False
        return True


_finder = _Finder()


def when_imported(module: str, callback: str) -> None:
    """Call `callback` ("package.module:function", no arguments) once, after `module` has been imported.

    At once if it has been already. When the import of a package imports `module`, the callback waits for that package.
    The callback's module is imported only then. An exception of the callback goes up through the import.
    """
    _finder.add(module, callback)


def default_hooks() -> None:
    """The hooks of every worker: swappable groups, and the adapter of each framework that is imported."""
    when_imported("torch.distributed", "ff_core.worker.boot:on_torch_distributed")
    when_imported("deepspeed", "ff_deepspeed.hooks:install")
    if _exists("ff_megatron.hooks"):
        when_imported("megatron.training", "ff_megatron.hooks:install")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
