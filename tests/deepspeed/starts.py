"""A case of worker.py: Hugging Face's Trainer begins with a configuration that people share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ff_core.state import registered
from ff_deepspeed import protection
from tests.e2e import shipped


def run(case: dict[str, Any], session: Any) -> dict[str, Any]:
    """case: shipped (a file), precision, steps, folder. Returns how far it came."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    for state in (AcceleratorState, GradientState):
        state._reset_state(*([True] if state is AcceleratorState else []))
    try:
        trainer = shipped.make_trainer(case["shipped"], case["precision"], case["steps"], Path(case["folder"]))
        trainer.train()
        protection.current().unmodified.end()
    finally:
        unset_hf_deepspeed_config()
        for name in [name for name in registered.collect() if name == "accelerate"]:
            registered.unregister_state(name)
    steps = trainer.state.global_step
    return {"error": "", "steps": steps, "sealed": session.sealed, "finished": session.finished}
