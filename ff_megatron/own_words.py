"""What the user of a loop of their own on megatron-core reads when it cannot be gone on with: what to do instead."""

from __future__ import annotations

from ff_core.worker.exact_loop import Words

UNPROTECTED = (
    "ff_megatron.iterations() without ff_megatron.protect(model, optimizer, scheduler, data=[...]) before it: call "
    "that when model and optimizer are complete, on every rank"
)
OTHER_DATA = (
    "a micro-batch is taken from a {kind} that cannot go back after a failure. Give protect() the data iterators and "
    "use what it returns: (data,) = ff_megatron.protect(model, optimizer, scheduler, data=[data])"
)
DATA_TWICE = (
    "protect(..., data=[...]) is given the same iterator twice: nobody could say which of the two has taken an item. "
    "Give it once, and use what is returned in both places"
)
NOT_ENTERED = (
    "the body of the iterations() loop did not enter `with ff_megatron.iteration():`: nothing could be repeated after "
    "a failure. Put the training of the iteration inside it"
)
OUTSIDE = (
    "a rank died while this one was outside `with ff_megatron.iteration():`, where it cannot go back to the "
    "interrupted iteration. Move collectives that run between iterations (evaluation, logging, checkpoints) inside "
    "the `with`, after optimizer.step()"
)
OF_LOOP = Words(
    nested="ff_megatron.iterations() inside another ff_megatron.iterations() loop: use one at a time",
    alone=(
        "`with ff_megatron.iteration():` belongs once into the body of a "
        "`for number in ff_megatron.iterations(total):` loop"
    ),
    swallowed=(
        "iteration %d was interrupted because a rank has died, and the script has swallowed that: a bare `except:` or "
        "`except BaseException:`. The iteration is repeated; let such a clause catch Exception only"
    ),
    enumerated=(
        "around the numbers of ff_megatron.iterations() is a {what} whose place cannot be set after a failure. Count "
        "by the numbers themselves, or by enumerate() around them"
    ),
)
