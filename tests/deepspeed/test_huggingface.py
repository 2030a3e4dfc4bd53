"""What of Hugging Face's Trainer is replaced, with the real package."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer

from ff_core.worker import session
from ff_deepspeed.trainers import checkpointing, huggingface


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer as module

    for name in (*huggingface._PARAMETERS, "train"):
        monkeypatch.setattr(Trainer, name, getattr(Trainer, name))
    monkeypatch.setattr(module, "skip_first_batches", module.skip_first_batches)
    if not hasattr(Trainer._inner_training_loop, "_ff_known"):
        huggingface.install()


class OwnLoop(Trainer):  # type: ignore[misc]
    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        return super()._run_epoch(*args, **kwargs)


class OwnStep(Trainer):  # type: ignore[misc]
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().training_step(*args, **kwargs)


def test_the_installed_trainer_is_the_one_that_is_known() -> None:
    """Fails where another release moved something: then look at every hook."""
    assert huggingface._difference(Trainer) is None
    assert huggingface._obstacle(Trainer) is None
    assert huggingface._obstacle(OwnStep) is None


def test_a_loop_of_a_subclass_is_an_obstacle() -> None:
    words = huggingface._obstacle(OwnLoop)
    assert words is not None and "OwnLoop._run_epoch() replaces" in words and '{"enabled": false}' in words


@pytest.mark.parametrize("lacks", ["_run_epoch", "_init_training_state"])
def test_another_release_is_an_obstacle(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    monkeypatch.setattr(Trainer, lacks, lambda self: None)
    words = huggingface._obstacle(Trainer)
    assert words is not None and f"{lacks}() has no parameter" in words and "Use transformers 5.24" in words
    monkeypatch.delattr(Trainer, lacks)
    assert f"it has no {lacks}()" in str(huggingface._obstacle(Trainer))


def test_a_process_without_a_session_runs_the_trainers_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "current", lambda: None)
    assert huggingface._train(lambda trainer, *args: args, object(), 3) == (3,)
    assert huggingface._place() is None


def test_checkpointing_that_is_switched_on_again_adds_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaForCausalLM.enable_input_require_grads
    original = getattr(original, "__wrapped__", original)
    monkeypatch.setattr(PreTrainedModel, "enable_input_require_grads", original)
    checkpointing.install()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    embeddings = model.get_input_embeddings()
    for running, hooks in ((None, 3), (object(), 1)):
        monkeypatch.setattr(session, "current", lambda running=running: running)
        embeddings._forward_hooks.clear()
        for _ in range(3):
            model.activation_checkpointing_enable()
            model.activation_checkpointing_disable()
        assert len(embeddings._forward_hooks) == hooks
