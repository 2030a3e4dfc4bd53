"""What ff_core's errors advise a user of DeepSpeed."""

from __future__ import annotations

from ff_core.contract.adapter import Remedies

OF_DEEPSPEED = Remedies(
    counter="`engine.global_steps`",
    save=(
        "`ff_core.register_state(name, obj)` with state_dict() and load_state_dict(), or in the usual loop "
        "`ff_deepspeed.client_state(...)`"
    ),
    batches="`ff_deepspeed.batches(engine, loader)`",
    unsaved='set "unsaved_variables": "ignore" in the "ff_failover" block',
    inside="with the exact loop: inside `with ff_deepspeed.iteration():`",
    edits=(
        'Set "weights_edited": true in the "ff_failover" block: then a version is copied when its iteration is over, '
        "low-precision weights included"
    ),
)
