"""What the user of an unmodified loop reads when it cannot be gone on with, each with what to do instead."""

from __future__ import annotations

REMEDIES = (
    "Either resume in the usual way: call engine.load_checkpoint(...) before training on every start, and register "
    "`ff_deepspeed.client_state(lambda: {...})` with what your script needs to go on; or change two lines: "
    "`for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` inside"
)
_NOT_RESUMABLE = (
    "training begins at {line}, and the script has not called engine.load_checkpoint(): the replacement of a rank that "
    "dies after the first step would start from the beginning, which is refused. "
)
_RESTARTS = (
    "After a failure the whole script starts again (--max-restarts), from its newest checkpoint if it looks for one. "
    "With a loop of your own: " + REMEDIES[0].lower() + REMEDIES[1:]
)
_THE_END = (
    "The first failure would end this job. Where the loop is a library's, start the "
    "job with `fftrain run --max-restarts N`: after a failure the whole script starts again, and goes on from its "
    "newest checkpoint if it looks for one (`save_steps`, `resume_from_checkpoint`). With a loop of your own: "
    + REMEDIES[0].lower()
    + REMEDIES[1:]
    + '. To train unprotected: "ff_failover": {"enabled": false}'
)
NO_CLIENT_STATE = (
    "the script calls engine.load_checkpoint() before training, and has registered no client state: the replacement of "
    "a rank that dies can be answered only right after the script has saved a checkpoint. Register "
    "`ff_deepspeed.client_state(lambda: {...})` with what your script needs to go on, {} if it needs nothing"
)
MOVED_ON = (
    "another failure moved the job to another version after load_checkpoint() had been answered in this replacement: "
    "it ends, and is replaced itself"
)
TOO_LATE = (
    "ff_deepspeed.batches() was called after the script had trained outside of it; let all training go through "
    "batches(), or none"
)
OWN_BACKWARD = (
    "{line}: engine.step() comes without an engine.backward(loss) before it: the script calls backward() on a loss "
    "itself, and after a failure nobody could make that call again. Write `engine.backward(loss)`, or change two "
    "lines: `for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` inside"
)
CYCLED = (
    "{line}: itertools.cycle() goes over the data loader. It keeps the batches of the first pass and gives the same "
    "ones again; a replacement of a dead rank would have kept others. Go over the loader anew: "
    "`def forever(loader): while True: yield from loader`"
)
ANOTHER_PLACE = (
    "the replacement of a dead rank does not come to the place where that rank was: {what}. Register with "
    "`ff_deepspeed.client_state(lambda: {{...}})` what the script needs to go on there (the epoch, which loader is "
    "its turn), or use `for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` "
    "inside"
)
ANOTHER_LOADER = "it trains on a batch of another data loader, or of none"
ENDED_VOID = (
    "the script ended in an iteration that a failure had voided: its loop counts iterations by itself and is one "
    "ahead. " + REMEDIES
)
OTHER_VALUES = (
    "an iteration must be repeated, and its batch comes another time with other values: the script changes batches "
    "between the loader and engine(...). " + REMEDIES
)


def other_loss(before: object, now: object) -> str:
    return (
        f"an iteration was repeated after a failure, and its loss is {now} that was {before} at first: the forward "
        "pass depends on something that it changes itself, and that was not put back, such as a count in a variable of "
        "the script. Keep it in an attribute or a buffer of the model, compute it from `engine.global_steps`, or save "
        "it: `ff_core.register_state(name, obj)` with state_dict() and load_state_dict()"
    )


def alone(reason: str) -> str:
    return (
        "an iteration must be repeated, and the script goes on in it with a collective whose result nobody can give: "
        f"{reason}. Give engine(...) copies, and let it train all that is trained. Or: {REMEDIES}"
    )


def first(reason: str) -> str:
    return (
        f"the job's first iteration must be repeated, but {reason}: only later ones can be repeated then. Start the "
        f"job again. Or: {REMEDIES}"
    )


def not_repeatable(obstacle: str | None) -> str:
    return f"after a failure this iteration could not be repeated: {obstacle}. {REMEDIES}"


def from_the_start(step: int) -> str:
    return f"this process replaces a dead rank at step {step}, but its script starts from the beginning. {REMEDIES}"


def not_resumable(line: str, may_restart: bool) -> str:
    """The loop that begins at `line` is not one in which a replacement finds its place."""
    return _NOT_RESUMABLE.format(line=line) + (_RESTARTS if may_restart else _THE_END)
