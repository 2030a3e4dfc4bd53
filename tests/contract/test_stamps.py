from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_core.contract.stamps import MAX_EPOCH, MAX_VERSION, epoch_of, stamp, version_of

EPOCHS = st.integers(0, MAX_EPOCH)
VERSIONS = st.integers(-1, MAX_VERSION)


@given(EPOCHS, VERSIONS, EPOCHS, VERSIONS)
def test_orders_like_the_pair(e1: int, v1: int, e2: int, v2: int) -> None:
    assert (stamp(e1, v1) < stamp(e2, v2)) == ((e1, v1) < (e2, v2))
    assert (epoch_of(stamp(e1, v1)), version_of(stamp(e1, v1))) == (e1, v1)
    assert stamp(e1, v1) < 2**63


def test_none() -> None:
    assert (epoch_of(0), version_of(0)) == (0, -1)
    assert stamp(0, 0) == 1


@pytest.mark.parametrize(("epoch", "version"), [(-1, 0), (MAX_EPOCH + 1, 0), (0, -2), (0, MAX_VERSION + 1)])
def test_out_of_range(epoch: int, version: int) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        stamp(epoch, version)
