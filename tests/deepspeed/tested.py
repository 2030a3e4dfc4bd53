"""For tests that do not hold with every DeepSpeed that is allowed (`make test DEEPSPEED=...`)."""

from __future__ import annotations

import pytest

from ff_deepspeed import versions

tested_only = pytest.mark.skipif(
    versions.installed() not in versions.TESTED, reason=f"of DeepSpeed {' and '.join(versions.TESTED)}"
)
#: Of older ones it is refused: ff_deepspeed.versions.own_loss_obstacle.
own_loss = pytest.mark.skipif(not versions.is_newer(), reason="a loss of the script's own, since DeepSpeed 0.19")
