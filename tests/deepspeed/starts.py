"""A case of worker.py: Hugging Face's Trainer begins with a configuration that people share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ff_core.state import registered
from ff_deepspeed import protection
from tests.e2e import shipped


def run(case: dict[str, Any], session: Any, interrupter: Any) -> dict[str, Any]:
    """case: shipped (a file), precision, steps, folder, plan (see worker.py). Returns how far it came, and how."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    for state in (AcceleratorState, GradientState):
        state._reset_state(*([True] if state is AcceleratorState else []))
    try:
        trainer = shipped.make_trainer(case["shipped"], case["precision"], case["steps"], Path(case["folder"]))
        interrupter.plan = [tuple(x) for x in case.get("plan", [])]
        trainer.add_callback(begins(interrupter))
        trainer.train()
        interrupter.running = False
        protection.current().unmodified.end()
    finally:
        unset_hf_deepspeed_config()
        for name in [name for name in registered.collect() if name == "accelerate"]:
            registered.unregister_state(name)
    steps = trainer.state.global_step
    weights = shipped.digest(trainer)
    history = [[entry.get("loss"), entry.get("grad_norm")] for entry in trainer.state.log_history[:-1]]
    return {
        "error": "", "steps": steps, "sealed": session.sealed, "finished": session.finished, "weights": weights,
        "history": history, "recovered": session.recovered,
    }  # fmt: skip


def begins(interrupter: Any) -> Any:
    """A callback that tells the interrupter where iterations begin."""
    from transformers import TrainerCallback

    class Begins(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            interrupter.begin(state.global_step + 1)

    return Begins()
