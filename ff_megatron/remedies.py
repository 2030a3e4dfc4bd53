"""What ff_core's errors advise a user of Megatron-LM, and one with a loop of their own on megatron-core."""

from __future__ import annotations

from ff_core.contract.adapter import Remedies

_SAVE = "`ff_core.register_state(name, obj)` with state_dict() and load_state_dict()"
_MASTERS = (
    "Do it within the optimizer's step, to the masters: `part.optimizer.register_step_post_hook(...)` for each part of "
    "Megatron's optimizer, before "
)

OF_PRETRAIN = Remedies(
    counter="`get_args().curr_iteration`",
    save=_SAVE,
    batches="the iterator that Megatron gives to forward_step(), with a data set whose items follow from their numbers",
    unsaved="give --ff-unsaved-variables ignore",
    inside="inside train()",
    edits=f"{_MASTERS}train(). Or leave --ff-failover out to train unprotected",
)
OF_OWN_LOOP = Remedies(
    counter="the numbers that `ff_megatron.iterations()` gives",
    save=_SAVE,
    batches="the iterators that `ff_megatron.protect(..., data=[...])` gives back",
    unsaved='set "unsaved_variables": "ignore" in the file of `fftrain run --ff-config FILE`',
    inside="inside `with ff_megatron.iteration():`",
    edits=f"{_MASTERS}ff_megatron.protect(). Or start the script with torchrun to train unprotected",
)
