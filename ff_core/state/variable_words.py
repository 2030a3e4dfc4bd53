"""What is said about variables of a script."""

from __future__ import annotations

from ff_core.contract.adapter import Remedies
from ff_core.state.values import MOST_ITEMS
from ff_core.state.words import some_of

_LEFT_OUT = (
    "the script has more variables and attributes than can be looked at in every iteration: {count} beyond the first "
    "{most} ({what}). A replacement would have them as they are before the training loop. Keep them in lists or dicts: "
    "each counts once, whatever is in it"
)
ALLOW = ". If training changes none of those that are beyond, {remedies.unsaved}"
_REMEDY = (
    "A replacement would begin with what they are before the training loop. Save them with "
    "`ff_core.register_state(name, obj)`, where obj has state_dict() and load_state_dict(), or compute them from "
    "{remedies.counter}. If they decide nothing, {remedies.unsaved}"
)
LOST = "rank {rank} cannot go on from version {version}: variables of its script are not what they were then: {what}. "
AHEAD = (
    "rank {rank} repeats an iteration from version {version}, and cannot put the script back to its beginning: its "
    "loop fetches batches ahead. Meanwhile the script has changed {what}. Take batches from "
    "{remedies.batches}, or fetch none ahead in the training thread. "
)
WRITTEN = (
    "the script writes {what} in its training loop: that cannot be saved in every iteration, so the first failure "
    "would end this job. "
)
THREADS = (
    "the script has threads of its own ({what}). What waits in their queues and what they are about to write is in no "
    "version: after a failure they may count other numbers. Let the training thread count what decides about training "
    "and what is printed at the end"
)
LONG = (
    "rank {rank} goes on from version {version} without the earlier entries of {what}: more than "
    f"{MOST_ITEMS} entries are not saved. If they decide about training, register them: "
    "ff_core.register_state(name, obj)"
)


def remedy(remedies: Remedies) -> str:
    """For who reads LOST, AHEAD or WRITTEN."""
    return _REMEDY.format(remedies=remedies)


def left_out(names: list[str], most: int) -> str:
    """names: those beyond the first `most`."""
    return _LEFT_OUT.format(count=len(names), most=most, what=some_of(names))
