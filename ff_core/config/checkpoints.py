"""The part of the schema that is about checkpoints which the framework itself saves."""

from __future__ import annotations

from pydantic import model_validator

from ff_core.config.fields import Scope, Strict, make_field


class PersistConfig(Strict):
    """Checkpoints on disk, as a second line of defence. Both fields or neither."""

    directory: str = make_field(Scope.JOB, "", "a path, or empty for none", "Where checkpoints are saved.")
    period: int = make_field(
        Scope.JOB, 0, "a whole number >= 0", "Iterations between checkpoints; 0: none are saved.", ge=0
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> PersistConfig:
        if bool(self.directory) != bool(self.period):
            raise ValueError(
                f"directory = {self.directory!r} and period = {self.period}: give both, or neither for no checkpoints"
            )
        return self
