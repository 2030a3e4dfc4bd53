"""What the real megatron-core remembers of an interrupted forward of experts is forgotten."""

from __future__ import annotations

import enum

import torch

from ff_megatron import experts, versions


class Step(enum.Enum):
    """As SharedExpertState of megatron-core 0.18."""

    IDLE = 0
    OUTPUT_READY = 1


class Shared(torch.nn.Module):
    """As SharedExpertMLP under --moe-shared-expert-overlap, caught between two of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cached_fc1_input = self.cached_fc2_input = self.cached_fc2_output = None
        self.cached_output = torch.ones(1)
        self._overlap_state = Step.OUTPUT_READY


class Deferred(torch.nn.Module):
    """As GPTModel under --defer-embedding-wgrad-compute, in the midst of its backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_activation_buffer = [torch.ones(1), torch.ones(1)]
        self.grad_output_buffer = [torch.ones(1)]


def test_sums_for_the_log_and_intermediate_results() -> None:
    from megatron.core.transformer.experimental_attention_variant.dsa import DSAIndexerLossLoggingHelper
    from megatron.core.transformer.moe.moe_utils import save_to_aux_losses_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    mtp, indexer = MTPLossLoggingHelper.tracker, DSAIndexerLossLoggingHelper.tracker
    try:
        save_to_aux_losses_tracker("z_loss", torch.tensor(2.0), 1, 3)
        mtp.update(values=torch.ones(2), correct_values=torch.ones(2), avg_group=None)
        indexer.update(values=torch.ones(2), avg_group=None)
        assert z_losses() == [2.0, 0.0, 0.0]
        model = torch.nn.Sequential(Shared())
        experts.reset([model])
        assert z_losses() == [0.0, 0.0, 0.0]
        assert mtp["values"].tolist() == mtp["correct_values"].tolist() == [0.0, 0.0]
        assert indexer["values"].tolist() == [0.0, 0.0]
        assert model[0].cached_output is None
        idle = bool(versions.series().expert_states)
        assert model[0]._overlap_state is (Step.IDLE if idle else Step.OUTPUT_READY)
    finally:
        mtp.clear()
        indexer.clear()


def test_deferred_gradients_of_the_interrupted_iteration() -> None:
    """megatron-core empties the activations only, and asserts then that there are as many gradients."""
    model = Deferred()
    activations, gradients = model.embedding_activation_buffer, model.grad_output_buffer  # the output layer has them
    experts.reset([model])
    assert model.embedding_activation_buffer is activations and model.grad_output_buffer is gradients
    assert activations == gradients == []


def z_losses() -> list[float]:
    from megatron.core.transformer.moe import moe_utils

    return moe_utils.get_moe_layer_wise_logging_tracker()["z_loss"]["values"].tolist()


def test_a_job_without_experts() -> None:
    experts.reset([torch.nn.Linear(1, 1)])
