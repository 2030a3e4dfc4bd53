"""What the real megatron-core remembers of an interrupted forward of experts is forgotten."""

from __future__ import annotations

import torch

from ff_megatron import experts


class Shared(torch.nn.Module):
    """As SharedExpertMLP under --moe-shared-expert-overlap, caught between two of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cached_fc1_input = self.cached_fc2_input = self.cached_fc2_output = None
        self.cached_output = torch.ones(1)


def test_sums_for_the_log_and_intermediate_results() -> None:
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker, save_to_aux_losses_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    tracker = get_moe_layer_wise_logging_tracker()
    try:
        save_to_aux_losses_tracker("z_loss", torch.tensor(2.0), 1, 3)
        MTPLossLoggingHelper.tracker["values"] = torch.ones(2)
        assert tracker["z_loss"]["values"].tolist() == [2.0, 0.0, 0.0]
        model = torch.nn.Sequential(Shared())
        experts.reset([model])
        assert tracker["z_loss"]["values"].tolist() == [0.0, 0.0, 0.0]
        assert MTPLossLoggingHelper.tracker["values"].tolist() == [0.0, 0.0]
        assert model[0].cached_output is None
    finally:
        tracker.clear()
        MTPLossLoggingHelper.tracker.clear()


def test_a_job_without_experts() -> None:
    experts.reset([torch.nn.Linear(1, 1)])
