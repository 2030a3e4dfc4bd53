"""What protection costs, from jobs in turns: their order, their pairs, their interval. No job runs here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench import variants  # noqa: E402
from bench.jobs import Cluster, Training  # noqa: E402
from bench.numbers import confidence  # noqa: E402


def test_confidence_is_of_the_mean_difference() -> None:
    found = confidence([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0 and found["n"] == 3
    assert (found["low"], found["high"]) == pytest.approx((2.0 - 2.484, 2.0 + 2.484), abs=1e-3)  # 4.303 / sqrt(3)
    many = confidence([1.0, 3.0] * 100)
    assert (many["low"], many["high"]) == pytest.approx((1.855, 2.145), abs=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        confidence([1.0])


def test_rounds_take_turns_and_differences_are_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    slower = {"plain": 0.0, "hooks": 0.001, "every": 0.25, "auto": 0.01}

    def job(directory: Path, training: Any, cluster: Any, block: Any) -> tuple[float, Any]:
        name, number = directory.name.split("-")
        order.append(name)
        assert block == variants.VARIANTS[name]
        said = SimpleNamespace(stats={0: {"lost_share": 0.2}}, interval=7)
        return 1.0 + 10 * int(number) + slower[name], said if block else None

    monkeypatch.setattr(variants, "_job", job)
    found = variants.compare(tmp_path, Training(10), Cluster(1, 1, 0), 3, lambda text: None)
    assert order[:4] == ["plain", "hooks", "every", "auto"] and order[4:8] == ["hooks", "every", "auto", "plain"]
    assert order[8:] == ["every", "auto", "plain", "hooks"] and found["auto"]["intervals"] == [7, 7, 7]
    assert found["every"]["beyond_plain_s"]["mean"] == pytest.approx(0.25)  # though rounds are 10 s apart
    assert found["every"]["beyond_plain_s"]["low"] == pytest.approx(0.25)
    assert found["every"]["beyond_plain"]["values"] == pytest.approx([0.25, 0.25 / 11, 0.25 / 21], abs=1e-6)
    assert "beyond_plain" not in found["plain"] and found["plain"]["iteration_s"]["n"] == 3
    assert found["hooks"]["rank_stats"] == {"0": {"lost_share": 0.2}}
