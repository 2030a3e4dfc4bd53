"""Client state: what a script saves beside the model and expects back from engine.load_checkpoint().

A newcomer's load_checkpoint() is answered from memory. In an unmodified loop the answer is what `client_state(fn)`
gave at the restored version, or else the client state that the script itself saved or loaded, if that was at exactly
that version. In the exact loop, which finds its way by itself, it is what load_checkpoint() gave when the job began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, covered, frames
from ff_deepspeed import words

log = logging.getLogger("ff_deepspeed")

Answer = tuple[str | None, dict[str, Any] | None]

_function: Callable[[], dict[str, Any]] | None = None


def client_state(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Register `function`, called at the end of every iteration: the client state of a replacement.

    It returns what the script would pass as save_checkpoint(client_state=...): plain values, NumPy arrays, tensors.
    May be used as a decorator. A second registration replaces the first.
    """
    global _function
    if not callable(function):
        raise UnsupportedError(f"client_state({function!r}): allowed: a function without arguments that returns a dict")
    _function = function
    covered.saves(function)
    return function


class LibraryLoop(Protocol):
    """A loop of a library, or around one (ff_deepspeed.trainers): what it keeps beside the engine. A replacement finds
    its place in it without an answer from load_checkpoint()."""

    def begins(self, fed: bool, seen: bool, may_restart: bool) -> None:
        """The job's first training forward. fed: a data loader was asked for its batch.  seen: it is known which it is.

        Raises UnsupportedError if a replacement could not find its place.
        """

    def save(self) -> dict[str, Any]:
        """At the end of an iteration: plain values that nobody changes afterwards."""

    def load(self, saved: dict[str, Any]) -> None:
        """In a replacement, when it joins: save()'s result of the restored version."""


class ClientState:
    """The client states of this process's engine. Each is {"step", "path", and "state" or "why" there is none}.

    loop: set by the module of a library whose loop drives the engine.
    """

    def __init__(self) -> None:
        self.loop: LibraryLoop | None = None
        self._saved: dict[str, Any] | None = None  # by the last save_checkpoint(), or load_checkpoint() before it
        self._loaded: dict[str, Any] | None = None  # by the first load_checkpoint()

    def current(self) -> dict[str, Any]:
        """What a checkpoint made now should hold: the function's result, else what the script saved last, else {}."""
        if _function is not None:
            return _call()
        return {} if self._saved is None else self._saved.get("state") or {}

    def saved(self, global_steps: int, path: str, state: dict[str, Any]) -> None:
        """The script saved a checkpoint with `state` after `global_steps` optimizer steps."""
        self._saved = _keep(global_steps, path, state)

    def loaded(self, global_steps: int, path: str | None, state: dict[str, Any] | None) -> None:
        """load_checkpoint() returned path and state, and set the engine to `global_steps`."""
        self._saved = _keep(global_steps, path, state)
        self._loaded = self._loaded or self._saved

    def begins(self, fed: bool, seen: bool, may_restart: bool) -> None:
        """The training of an unmodified loop begins: warn if no replacement could find its place in it.

        Raises UnsupportedError if the loop is a library's.
        """
        if self.is_led_by_loop:
            assert self.loop is not None
            self.loop.begins(fed, seen, may_restart)
        elif self._loaded is None:
            log.warning("%s", words.not_resumable(frames.line(), may_restart))
        elif _function is None:
            log.warning("%s", words.NO_CLIENT_STATE)

    @property
    def is_led_by_loop(self) -> bool:
        """Whether a library's loop leads a replacement to its place, and not the script itself."""
        return self.loop is not None and (self._loaded is None or _function is None)

    def save(self) -> dict[str, Any]:
        """For the scalars of a version."""
        return {
            "function": None if _function is None else _call(),
            "saved": self._saved,
            "loaded": self._loaded,
            "loop": None if self.loop is None else self.loop.save(),
            "led": self.is_led_by_loop,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self._saved, self._loaded = saved["saved"], saved["loaded"]

    def join(self, saved: dict[str, Any]) -> None:
        """In a replacement: a library's loop is where the dead rank's was. A survivor's has gone on by itself."""
        if self.loop is not None and saved["loop"] is not None:
            self.loop.load(saved["loop"])


def answer(saved: dict[str, Any], global_steps: int, path: str) -> Answer:
    """load_checkpoint() in a newcomer at `global_steps`: (path, client state). saved: of the restored version.

    Raises FailoverError if there is no client state of that step.
    """
    if saved["function"] is not None:
        return path, saved["function"]
    own = saved["saved"]
    if own is not None and own["step"] == global_steps and "why" not in own:
        return own["path"], own["state"]
    if own is None:
        reason = "the script has saved none yet"
    elif own["step"] != global_steps:
        reason = f"the last one that the script saved is of step {own['step']}, the job is at step {global_steps}"
    else:
        reason = f"the one of step {global_steps} cannot be kept in memory ({own['why']})"
    raise FailoverError(
        f"engine.load_checkpoint() in the replacement of a dead rank needs a client state, and {reason}. Register "
        "`ff_deepspeed.client_state(lambda: {...})`, returning what you pass to save_checkpoint(client_state=...), or "
        "use the loop `for batches in ff_deepspeed.batches(engine, loader)`, which needs none"
    )


def first_answer(saved: dict[str, Any]) -> tuple[int, Answer] | None:
    """What load_checkpoint() gave when the job began: (global_steps, (path, state)); None if it cannot be told."""
    first = saved["loaded"]
    if first is None:
        return 0, (None, None)
    return None if "why" in first else (first["step"], (first["path"], first["state"]))


def _keep(global_steps: int, path: str | None, state: dict[str, Any] | None) -> dict[str, Any]:
    try:
        # Encoded and back: the script may go on changing its dict.
        kept = codec.decode(codec.encode(state, "client_state"))
    except UnsupportedError as error:
        return {"step": global_steps, "path": path, "why": str(error)}
    return {"step": global_steps, "path": path, "state": kept}


def _call() -> dict[str, Any]:
    assert _function is not None
    state = _function()
    if not isinstance(state, dict):
        raise UnsupportedError(f"client_state: the function returned {state!r}; allowed: a dict")
    return state
