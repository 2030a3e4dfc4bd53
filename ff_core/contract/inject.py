"""Fault injection, for users to test their jobs with: `fftrain run --inject "kill rank=2 iteration=5 at=backward"`.

An injection names an action, a rank, an iteration (1-based: iteration n makes version n) and a point of the iteration.
It fires once per job: the worker reports it to the controller before it acts, so the rank's replacement, which meets
the same point again, does not fire it again. To hit a rank twice give two injections.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ff_core.errors import ConfigError

ACTIONS = ("kill", "raise", "exit", "corrupt-slot")
POINTS = ("forward", "backward", "step", "after-step", "copying")
RANDOM = "random"
SLOTS = ("own", "replica")
#: Where a random kill falls when the iteration before it was not seen, seconds after the start of its iteration.
_FIRST_WINDOW_S = 0.2

_FORM = '"ACTION rank=R iteration=N at=POINT", for example "kill rank=2 iteration=5 at=backward"'


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault.

    id: its position on the command line.
    action: kill (SIGKILL to itself), raise (RuntimeError in the training thread), exit (SystemExit with `code`), or
    corrupt-slot. For corrupt-slot an agent flips a bit in the newest complete version of the rank's `slot`: its own or
    its replica.
    rank, iteration: where, iteration 1-based.
    at: one of POINTS, or "random": a kill at a random time, drawn from `seed`, within the duration of one iteration
    after the start of the named one.
    delay_s: seconds after the point. A kill lets training go on meanwhile, raise and exit wait.
    """

    id: int
    action: str
    rank: int
    iteration: int
    at: str
    delay_s: float = 0.0
    seed: int = 0
    code: int = 1
    slot: str = "replica"


def parse(text: str, id: int = 0) -> Injection:
    """The injection that `text` describes. Raises ConfigError naming the word that is wrong and what is allowed."""

    def wrong(word: str, allowed: str) -> ConfigError:
        return ConfigError(f"--inject {text!r}: {word}: allowed: {allowed}")

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise wrong(str(error), _FORM) from None
    if not words:
        raise wrong("nothing in it", _FORM)
    action, settings = words[0], _settings(words[1:], wrong)
    if action not in ACTIONS:
        raise wrong(f"action {action!r}", f"{', '.join(ACTIONS)}; the form is {_FORM}")
    for key in ("rank", "iteration", "at"):
        if key not in settings:
            raise wrong(f"no {key}=", f"{_FORM}; {key} is needed")
    known = {"rank", "iteration", "at", *_EXTRAS[action]}
    for key in settings:
        if key not in known:
            raise wrong(f"{key}={settings[key]}", f"for {action}: {', '.join(sorted(known))}")
    at = settings["at"]
    points = POINTS + ((RANDOM,) if action == "kill" else ())
    if at not in points:
        raise wrong(f"at={at}", f"for {action}: {', '.join(points)}")
    if "seed" in settings and at != RANDOM:
        raise wrong(f"seed={settings['seed']}", f"only with at={RANDOM}")
    if "slot" in settings and settings["slot"] not in SLOTS:
        raise wrong(f"slot={settings['slot']}", ", ".join(SLOTS))

    def whole(key: str, default: int, least: int, most: int | None = None) -> int:
        word = settings.get(key, str(default))
        upper = "" if most is None else f" and at most {most}"
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise wrong(f"{key}={word}", f"a whole number of at least {least}{upper}")
        return value

    def seconds(key: str) -> float:
        word = settings.get(key, "0")
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            raise wrong(f"{key}={word}", "seconds from 0 to 1000000")
        return value

    return Injection(
        id=id,
        action=action,
        rank=whole("rank", 0, 0),
        iteration=whole("iteration", 1, 1),
        at=at,
        delay_s=seconds("delay"),
        seed=whole("seed", 0, 0),
        code=whole("code", 1, 0, 255),
        slot=settings.get("slot", "replica"),
    )


_EXTRAS = {"kill": ("delay", "seed"), "raise": ("delay",), "exit": ("delay", "code"), "corrupt-slot": ("slot",)}


def _settings(words: Sequence[str], wrong: Callable[[str, str], ConfigError]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise wrong(f"word {word!r}", "KEY=VALUE")
        if key in settings:
            raise wrong(f"{word} after {key}={settings[key]}", f"one {key}=")
        settings[key] = value
    return settings


def parse_all(texts: Sequence[str], world_size: int | None = None) -> list[Injection]:
    """All of a job's injections; ids are positions. Raises ConfigError, also for ranks outside `world_size`."""
    injections = [parse(text, number) for number, text in enumerate(texts)]
    for injection in injections:
        if world_size is not None and injection.rank >= world_size:
            raise ConfigError(
                f"--inject {texts[injection.id]!r}: rank={injection.rank}: allowed: 0 to {world_size - 1}"
            )
    return injections


class InjectionPoints:
    """The injections of one rank, carried out as training passes their points.

    rank: this rank.  injections: those that have not fired yet; other ranks' are ignored.
    fired(id): reports one with the wall-clock time and returns when the controller knows it; then the action follows.
    A corrupt-slot is carried out by the agents on that report, before `fired` returns.
    """

    def __init__(self, rank: int, injections: Sequence[Injection], fired: Callable[[int], None]) -> None:
        self._mine = [i for i in injections if i.rank == rank]
        self._fired = fired
        self._iteration = 0
        self._started_s = 0.0
        self._duration_s = _FIRST_WINDOW_S

    def point(self, at: str, iteration: int) -> None:
        """`iteration` (1-based) has reached `at`, one of POINTS: what is due fires here. Training thread only.

        A repeated iteration passes its points again; what has fired does not fire again.
        """
        if not self._mine:
            return
        if iteration != self._iteration:
            now = time.monotonic()
            if iteration == self._iteration + 1 and self._iteration:
                self._duration_s = now - self._started_s
            self._iteration, self._started_s = iteration, now
            self._due(RANDOM, iteration)
        self._due(at, iteration)

    def _due(self, at: str, iteration: int) -> None:
        for injection in [i for i in self._mine if i.at == at and i.iteration == iteration]:
            self._mine.remove(injection)
            self._fire(injection)

    def _fire(self, injection: Injection) -> None:
        if injection.action == "kill":
            delay = injection.delay_s
            if injection.at == RANDOM:
                draw = random.Random(f"{injection.seed}/{injection.rank}/{injection.iteration}").random()
                delay += draw * self._duration_s
            if delay > 0:
                threading.Thread(target=self._kill, args=(injection, delay), name="ff-inject", daemon=True).start()
            else:
                self._kill(injection, 0.0)
            return
        if injection.delay_s > 0:
            time.sleep(injection.delay_s)
        self._fired(injection.id)
        if injection.action == "raise":
            where = f"rank={injection.rank} iteration={injection.iteration} at={injection.at}"
            raise RuntimeError(f"injected: raise {where}")
        if injection.action == "exit":
            raise SystemExit(injection.code)

    def _kill(self, injection: Injection, delay_s: float) -> None:
        if delay_s > 0:
            time.sleep(delay_s)
        self._fired(injection.id)
        os.kill(os.getpid(), signal.SIGKILL)
