from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ff_core.observe.svg import Scale, Svg, thin

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    scale = Scale(low, high, 0, 100)
    ticks = scale.ticks(6)
    assert 1 <= len(ticks) <= 14
    slack = 1e-6 * max(1.0, abs(scale.low), abs(scale.high))
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


def test_scale_maps_ends_to_ends_and_survives_an_empty_range() -> None:
    scale = Scale(2, 4, 100, 0)
    assert (scale(2), scale(3), scale(4)) == (100, 50, 0)
    assert Scale(3, 3, 0, 10)(3) == 5


def test_thin_keeps_spikes() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[70_000] = (70_000.0, -99.0)
    kept = thin(points, 1000)
    assert len(kept) <= 1100
    assert (54_321.0, 99.0) in kept
    assert (70_000.0, -99.0) in kept
    assert kept == sorted(kept)
    assert thin(points[:10]) == points[:10]


def test_texts_are_escaped() -> None:
    svg = Svg(10, 10, 'a "label" <x>')
    svg.text(1, 2, "<b>&")
    svg.rect(0, 0, 1, 1, "fill:red", title="<i>")
    assert "&lt;b&gt;&amp;" in str(svg)
    assert "<title>&lt;i&gt;</title></rect>" in str(svg)
    assert "&quot;label&quot; &lt;x&gt;" in str(svg)
