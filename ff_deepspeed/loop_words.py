"""What the user of the exact loop reads when it cannot be gone on with, each with what to do instead."""

from __future__ import annotations

from ff_core.worker.exact_loop import Words

OUTSIDE = (
    "a rank died while this one was outside `with ff_deepspeed.iteration():`, where it cannot go back to the "
    "interrupted iteration. Move collectives that run between iterations (evaluation, logging, checkpoints) "
    "inside the `with`, after engine.step()"
)
BOUNDARY = (
    "engine.set_gradient_accumulation_boundary() is called in an iteration of ff_deepspeed.batches(), with "
    "gradient_accumulation_steps = {steps}. Whoever calls it counts micro-batches. "
    "That count does not go back with an iteration that is repeated after a failure: the ranks would step at different "
    "times. An item of batches() holds all micro-batches of one step, and DeepSpeed counts them itself: leave the call "
    "out. An engine that accelerator.prepare() has made may be used with accelerator.accumulate()"
)

RESIZED = (
    "the script has changed gradient_accumulation_steps from {before} to {now} within a loop over "
    "ff_deepspeed.batches(), as engine.set_train_batch_size() does. The items of this loop hold {before} micro-batches "
    "each. Change it between two loops: for batches in ff_deepspeed.batches(engine, loader, limit=...)"
)

ENUMERATED = (
    "around the batches of this loop is a {what} whose place cannot be set after a failure. Count by enumerate() "
    "around the batches or by engine.global_steps, and let zip() and map() take the batches first"
)

OF_LOOP = Words(
    nested="ff_deepspeed.batches() inside another ff_deepspeed.batches() loop: use one at a time",
    alone=(
        "`with ff_deepspeed.iteration():` belongs once into the body of a "
        "`for batches in ff_deepspeed.batches(engine, loader):` loop"
    ),
    swallowed=(
        "iteration %d was interrupted because a rank has died, and the script has swallowed that: a bare `except:` or "
        "`except BaseException:`. The iteration is repeated; let such a clause catch Exception only"
    ),
    enumerated=ENUMERATED,
)
