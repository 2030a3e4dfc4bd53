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


def test_sums_for_the_log_and_intermediate_results() -> None:
    from megatron.core.transformer.moe.moe_utils import save_to_aux_losses_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    mtp = MTPLossLoggingHelper.tracker
    try:
        save_to_aux_losses_tracker("z_loss", torch.tensor(2.0), 1, 3)
        mtp.update(values=torch.ones(2), correct_values=torch.ones(2), avg_group=None)
        assert z_losses() == [2.0, 0.0, 0.0]
        model = torch.nn.Sequential(Shared())
        experts.reset([model])
        assert z_losses() == [0.0, 0.0, 0.0]
        assert mtp["values"].tolist() == mtp["correct_values"].tolist() == [0.0, 0.0]
        assert model[0].cached_output is None
        idle = bool(versions.series().expert_states)
        assert model[0]._overlap_state is (Step.IDLE if idle else Step.OUTPUT_READY)
    finally:
        mtp.clear()


def z_losses() -> list[float]:
    from megatron.core.transformer.moe import moe_utils

    return moe_utils.get_moe_layer_wise_logging_tracker()["z_loss"]["values"].tolist()


def test_a_job_without_experts() -> None:
    experts.reset([torch.nn.Linear(1, 1)])
