"""The one sentence that says what a job is protected against now."""

from __future__ import annotations

from ff_core.controller.state import JobState


def announce_coverage(state: JobState) -> None:
    """Work out what the chosen holders cover; say so aloud when that changes."""
    fewest = min(len(rank.holders) for rank in state.members.ranks.values())
    wanted = state.config.replicas
    if fewest == 0:
        text = "protected against the death of processes, NOT of a node: " + (
            "replicas = 0" if wanted == 0 else "there is only one failure domain"
        )
    else:
        text = f"protected against the loss of {fewest} node{'s' if fewest > 1 else ''} at a time"
        if fewest < wanted:
            nodes = len(state.members.places())
            text += f" (degraded: {wanted} replicas wanted, {fewest} possible on {nodes} nodes)"
    if text != state.coverage:
        state.coverage = text
        state.out.emit("coverage", text=text, replicas=fewest, wanted=wanted, degraded=fewest < wanted)
        state.out.say(text)
