"""With our groups installed every operation gives what plain gloo gives."""

from __future__ import annotations

import pytest

from tests.comm import programs_ops
from tests.comm.harness import run


@pytest.mark.parametrize("program", ["every_collective", "objects_and_batches", "functional_and_mesh"])
@pytest.mark.parametrize("world", [4])
def test_equals_plain_gloo(program: str, world: int) -> None:
    function = getattr(programs_ops, program)
    plain = run(world, function, swappable=False)
    ours = run(world, function)
    for rank in range(world):
        assert ours[rank] == plain[rank]
