"""Client state: what a script saves beside the model and expects back from engine.load_checkpoint().

A newcomer's load_checkpoint() is answered from memory. Its second result is what `ff_deepspeed.client_state(fn)`
returned at the restored version, or else the client state that the script itself saved, if it saved one at exactly
that version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec

_function: Callable[[], dict[str, Any]] | None = None


def client_state(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Register `function`, called at the end of every iteration: what engine.load_checkpoint() returns in a
    replacement.

    It returns what the script would pass as save_checkpoint(client_state=...): plain values, NumPy arrays, tensors.
    May be used as a decorator. A second registration replaces the first.
    """
    global _function
    if not callable(function):
        raise UnsupportedError(f"client_state({function!r}): allowed: a function without arguments that returns a dict")
    _function = function
    return function


class ClientState:
    """The client states of this process's engine."""

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None  # {"step", "state" or "why"}: the script's last save_checkpoint()
        self._restored: dict[str, Any] | None = None

    def current(self) -> dict[str, Any]:
        """What a checkpoint made now should hold: the function's result, else what the script saved last, else {}."""
        if _function is not None:
            return _call()
        return {} if self._saved is None else self._saved.get("state", {})

    def remember(self, global_steps: int, state: dict[str, Any]) -> None:
        """The script saved a checkpoint with `state` after `global_steps` optimizer steps."""
        try:
            # Encoded and back: the script may go on changing its dict.
            self._saved = {"step": global_steps, "state": codec.decode(codec.encode(state, "client_state"))}
        except UnsupportedError as error:
            self._saved = {"step": global_steps, "why": str(error)}

    def save(self) -> dict[str, Any]:
        """For the scalars of a version."""
        return {"function": None if _function is None else _call(), "saved": self._saved}

    def load(self, saved: dict[str, Any]) -> None:
        self._restored = saved
        self._saved = saved["saved"]

    def restored(self, global_steps: int) -> dict[str, Any]:
        """The answer to load_checkpoint() in a newcomer at `global_steps`. Raises FailoverError if there is none."""
        restored = self._restored or {"function": None, "saved": None}
        if restored["function"] is not None:
            return restored["function"]
        saved = restored["saved"]
        if saved is not None and saved["step"] == global_steps and "state" in saved:
            return saved["state"]
        if saved is None:
            reason = "the script has not saved one yet"
        elif saved["step"] != global_steps:
            reason = f"the last one that the script saved is of step {saved['step']}, the job is at step {global_steps}"
        else:
            reason = f"the one saved at step {global_steps} cannot be kept in memory ({saved['why']})"
        raise FailoverError(
            f"engine.load_checkpoint() in the replacement of a dead rank needs a client state, and {reason}. Register "
            "`ff_deepspeed.client_state(lambda: {...})`, returning what you pass to "
            "save_checkpoint(client_state=...), or use the loop `for batches in ff_deepspeed.batches(engine, "
            "loader)`, which needs none"
        )


def _call() -> dict[str, Any]:
    assert _function is not None
    state = _function()
    if not isinstance(state, dict):
        raise UnsupportedError(f"client_state: the function returned {state!r}; allowed: a dict")
    return state
