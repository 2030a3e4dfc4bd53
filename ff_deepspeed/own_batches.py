"""Unmodified loops whose batches come from no data loader: where a version ends, and what proves a replacement.

Such an iteration is seen to be over in the next engine(...) only. The next batch has been made by then. So what the
script shows of itself is taken twice: at the end of engine.step() (A) and in the next engine(...) (B). A replacement
gets A where it begins (the answer of load_checkpoint(), registered state, random states), makes its batch, and gets B
(registered state, random states) in its first engine(...). There it must show what was shown at B, and give the same
inputs. See docs/what-is-protected.md, "Batches from no DataLoader".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, registered, rng
from ff_core.state.fingerprint import Fingerprint
from ff_deepspeed import places

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine

log = logging.getLogger("ff_deepspeed")

REMEDY = (
    "Let FFTrainer hand the batches out: `for batches in ff_deepspeed.batches(engine, generator)` with "
    "`with ff_deepspeed.iteration()` inside. generator: anything that yields micro-batches in the same order on every "
    "start of the script"
)
AHEAD = (
    "the batches of this loop come from no torch DataLoader, and {what} between engine(...) and engine.step(): the "
    "loop makes its next batch there, or seems to, and after a failure that batch could not be found again. " + REMEDY
)
BETWEEN = (
    "the batches of this loop come from no torch DataLoader, and client_state() gives another {what} right after "
    "engine.step() than in the next engine(...): it cannot be told whether that belongs to the finished iteration or "
    "to the next batch, so after a failure the batch could not be found again. " + REMEDY
)
OTHER = (
    "the replacement of a dead rank does not go on where that rank was: {what}. The batches of this loop come from no "
    "torch DataLoader, so the script itself has to find the next one again. " + REMEDY
)


@dataclass(slots=True)
class Shown:
    """What the script shows of itself at some moment. client: of ClientState.save()."""

    client: dict[str, Any]
    registered: dict[str, bytes]
    rng: dict[str, Any]

    def encoded_rng(self) -> bytes:
        return codec.encode(self.rng, "rng")


class OwnBatches:
    """Of one script. Nothing here costs anything once a data loader is known to feed the loop."""

    def __init__(self, protection: ProtectedEngine) -> None:
        self._p = protection
        self._after_step: Shown | None = None
        self._after_forward: Shown | None = None
        self._warned = False

    # ---- in the rank that may die -----------------------------------------------------------------------------------

    def show(self) -> Shown:
        states = {name: codec.encode(state, name) for name, state in registered.collect().items()}
        # Encoded and back: the script may go on changing what it gave.
        client = codec.decode(codec.encode(self._p.client.save(), "client_state"))
        return Shown(client, states, rng.capture())

    def stepped(self) -> None:
        """engine.step() has made a version (A)."""
        self._after_step = self.show()

    def start(self, inputs: Any) -> dict[str, Any]:
        """The first engine(...) of all: for the position of the version before it."""
        return {"inputs": Fingerprint(inputs).value(), "before": None, "shown": None}

    def seal(self, inputs: Any, refuse: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next engine(...) (B). Returns the version's client state and what goes into its position.

        refuse: raise UnsupportedError where it cannot be told which client state is the version's; else a replacement
        has to prove it.
        """
        before, now = self._after_step, self.show()
        self._after_step = None
        client, shown = now.client, now.client["function"]
        if before is not None:
            function, unclear = combine(before.client["function"], shown, self._p.engine.global_steps)
            if unclear and refuse:
                raise self._p.fail(UnsupportedError(BETWEEN.format(what=", ".join(unclear[:3]))))
            if unclear and not self._warned:
                self._warned = True
                log.warning("%s", BETWEEN.format(what=", ".join(unclear[:3])))
            client = {**client, "function": function}
        return client, {
            "inputs": Fingerprint(inputs).value(),
            "before": None if before is None else {"registered": before.registered, "rng": before.rng},
            "shown": shown,
        }

    def forward_over(self) -> None:
        """In the first iteration of a loop that no loader feeds: engine(...) has returned."""
        self._after_forward = self.show()

    def loader_asked(self) -> None:
        """A data loader feeds the loop after all."""
        self._after_forward = None

    def step_begins(self) -> None:
        """Raises UnsupportedError if the loop makes its next batch between engine(...) and engine.step()."""
        before, self._after_forward = self._after_forward, None
        if before is None:
            return
        now = self.show()
        changed = differences(before.client["function"], now.client["function"])
        what = [f"client_state() changes its {path}" for path in changed]
        what += [
            f"the registered state {name!r} changes"
            for name in now.registered
            if now.registered[name] != before.registered.get(name)
        ]
        what += ["random numbers are drawn"] if now.encoded_rng() != before.encoded_rng() else []
        if what:
            raise self._p.fail(UnsupportedError(AHEAD.format(what=what[0])))

    # ---- in its replacement -----------------------------------------------------------------------------------------

    def answered(self, data: dict[str, Any]) -> None:
        """load_checkpoint() was answered: the script may make its first batch from here on."""
        before = (data.get("own") or {}).get("before")
        if before is not None:
            registered.load_known({name: codec.decode(state) for name, state in before["registered"].items()})
            rng.restore(before["rng"])

    def prove(self, data: dict[str, Any], inputs: Any) -> None:
        """The replacement's first engine(...). Raises FailoverError if it is not where the dead rank was."""
        places.check_forward(data, self._p.fail)
        own = data.get("own")
        if own is None:
            return
        what = []
        if own["shown"] is not None:
            now = self._p.client.save()["function"]
            what = [f"client_state() gives another {path}" for path in differences(own["shown"], now)]
        if Fingerprint(inputs).value() != own["inputs"]:
            what.append("engine(...) is given another batch")
        if what:
            raise self._p.fail(FailoverError(OTHER.format(what=", ".join(what[:3]))))


def combine(before: Any, now: Any, steps: int) -> tuple[Any, list[str]]:
    """The client state after `steps` steps from what was shown at A and at B, and the paths that it cannot tell.

    A number that counts steps is the one that says `steps`; in everything else A counts.
    """
    unclear: list[str] = []

    def choose(path: str, a: Any, b: Any) -> Any:
        if type(a) is dict and type(b) is dict and a.keys() == b.keys():
            return {key: choose(f"{path}[{key!r}]", a[key], b[key]) for key in a}
        if type(a) in (list, tuple) and type(a) is type(b) and len(a) == len(b):
            return type(a)(choose(f"{path}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))
        if _same(a, b):
            return a
        if type(a) is int and type(b) is int and b == a + 1 and steps in (a, b):
            return steps
        unclear.append(path or "value")
        return a

    return choose("", before, now), unclear


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two client states differ."""
    return list(_differences(a, b, path))


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if type(a) is dict and type(b) is dict and a.keys() == b.keys():
        for key in a:
            yield from _differences(a[key], b[key], f"{path}[{key!r}]")
    elif not _same(a, b):
        yield path or "value"


def _same(a: Any, b: Any) -> bool:
    return codec.encode(a, "client_state") == codec.encode(b, "client_state")
