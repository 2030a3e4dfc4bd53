"""What several of the copy engine's tests share."""

from __future__ import annotations

import pytest

from tests.copy.rig import Rig, streams_pair, tcp_pair


@pytest.fixture(params=[tcp_pair, streams_pair], ids=["1-stream", "3-streams"])
def streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is run twice: the first holder is reached over one TCP stream, and over three."""
    monkeypatch.setattr(Rig, "first", staticmethod(request.param))
