from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.errors import UnsupportedError
from ff_core.state.razor import ALIGNMENT, PAGE, describe, make_plan


def spec(name: str, tensor: torch.Tensor, held: Held = Held.UNIQUE, over: str = "", source: str = "") -> TensorSpec:
    return TensorSpec(name, tensor, held, over, source)


def zero1() -> list[TensorSpec]:
    return [
        spec("weight", torch.zeros(1000, dtype=torch.bfloat16), Held.DERIVED, source="master"),
        spec("master", torch.zeros(100)),
        spec("step", torch.zeros(()), Held.REPLICATED, over="data-parallel, 4 ranks"),
        spec("exp_avg", torch.zeros(100)),
        spec("mask", torch.zeros(7, dtype=torch.bool), Held.CONSTANT, over="data-parallel, 4 ranks"),
    ]


def test_plan_of_a_small_rank() -> None:
    plan = make_plan(zero1())
    assert [(s.name, s.bytes, s.offset) for s in plan.segments] == [
        ("master", 400, 0),
        ("exp_avg", 400, 448),
        ("step", 4, 4096),
    ]
    assert (plan.sent_bytes, plan.local_bytes, plan.payload_bytes) == (4096, 64, 4160)
    assert plan.totals == {Held.UNIQUE: 800, Held.REPLICATED: 4, Held.DERIVED: 2000, Held.CONSTANT: 7}


def test_engine_sees_the_live_tensor() -> None:
    tensor = torch.arange(5, dtype=torch.float64)
    (segment,) = make_plan([spec("t", tensor)]).segments
    assert segment.for_engine() == (tensor.data_ptr(), 40, 0, -1)


sizes = st.lists(st.tuples(st.integers(0, 9000), st.sampled_from(list(Held))), max_size=30)


@given(sizes)
@settings(max_examples=200, deadline=None)
def test_layout_holds_for_any_sizes(declared: list[tuple[int, Held]]) -> None:
    specs = [
        spec(str(i), torch.empty(size, dtype=torch.uint8), held, over="all", source="x")
        for i, (size, held) in enumerate(declared)
    ]
    plan = make_plan(specs)
    end = 0
    for segment in plan.segments:
        assert segment.offset % ALIGNMENT == 0
        assert segment.offset >= end
        assert (segment.offset >= plan.sent_bytes) == (segment.held is Held.REPLICATED)
        end = segment.offset + segment.bytes
        if segment.held is Held.UNIQUE:
            assert end <= plan.sent_bytes
    assert end <= plan.payload_bytes
    assert plan.sent_bytes % PAGE == 0
    assert plan.payload_bytes - end < PAGE
    for held in Held:
        assert plan.totals[held] == sum(size for size, h in declared if h is held)
    copied = [s.name for s in plan.segments]
    assert sorted(copied) == sorted(
        str(i) for i, (size, h) in enumerate(declared) if size and h in (Held.UNIQUE, Held.REPLICATED)
    )


def test_fingerprint_tells_plans_apart() -> None:
    assert make_plan(zero1()).fingerprint() == make_plan(zero1()).fingerprint()
    reshaped = [spec("master", torch.zeros(10, 10)) if s.name == "master" else s for s in zero1()]
    reordered = list(reversed(zero1()))
    renamed = [spec("masters", s.tensor) if s.name == "master" else s for s in zero1()]
    retyped = [spec("master", torch.zeros(100, dtype=torch.int32)) if s.name == "master" else s for s in zero1()]
    prints = {make_plan(specs).fingerprint() for specs in (zero1(), reshaped, reordered, renamed, retyped)}
    assert len(prints) == 5
    (unique, local) = ([spec("t", torch.zeros(3), held, over="all")] for held in (Held.UNIQUE, Held.REPLICATED))
    assert make_plan(unique).fingerprint() != make_plan(local).fingerprint()


def test_duplicate_name() -> None:
    with pytest.raises(UnsupportedError, match="declared twice: a"):
        make_plan([spec("a", torch.zeros(1)), spec("a", torch.zeros(1), Held.DERIVED, source="b")])


@pytest.mark.parametrize("held", list(Held))
@pytest.mark.parametrize("swap", [False, True])
def test_copied_memory_is_declared_once(held: Held, swap: bool) -> None:
    flat = torch.zeros(100)
    specs = [spec("flat", flat), spec("view", flat[90:], held, over="all", source="flat")]
    with pytest.raises(UnsupportedError, match=r"share memory"):
        make_plan(reversed(specs) if swap else specs)


def test_copied_part_of_what_is_declared_derived() -> None:
    flat = torch.zeros(100)
    specs = [
        spec("whole", flat, Held.DERIVED, source="x"),
        spec("front", flat[:10], Held.DERIVED, source="x"),
        spec("part", flat[50:60]),
    ]
    with pytest.raises(UnsupportedError, match=r"whole \(derived\) and part \(unique\) share memory"):
        make_plan(specs)


def test_neighbouring_and_uncopied_views_may_share_a_buffer() -> None:
    flat = torch.zeros(100)
    derived = torch.zeros(50)
    plan = make_plan(
        [
            spec("low", flat[:50]),
            spec("high", flat[50:]),
            spec("whole", derived, Held.DERIVED, source="low"),
            spec("part", derived[10:20], Held.DERIVED, source="low"),
        ]
    )
    assert [s.name for s in plan.segments] == ["low", "high"]


def test_overlap_is_found_behind_a_long_tensor() -> None:
    flat = torch.zeros(100)
    specs = [spec("whole", flat), spec("other", torch.zeros(3)), spec("late", flat[98:])]
    with pytest.raises(UnsupportedError, match=r"whole .* and late .* share memory"):
        make_plan(specs)


def test_tensors_that_cannot_be_copied() -> None:
    with pytest.raises(UnsupportedError, match=r"strided: .*not contiguous"):
        make_plan([spec("strided", torch.zeros(4, 4).t())])
    with pytest.raises(UnsupportedError, match=r"sparse: .*not contiguous"):
        make_plan([spec("sparse", torch.eye(3).to_sparse())])
    with pytest.raises(UnsupportedError, match=r"meta: .*meta cannot be copied"):
        make_plan([spec("meta", torch.empty(3, device="meta"))])


def test_what_is_not_copied_may_have_any_layout() -> None:
    plan = make_plan([spec("t", torch.zeros(4, 4).t(), Held.DERIVED, source="x")])
    assert plan.payload_bytes == 0


def test_description_says_what_and_why() -> None:
    text = describe(make_plan(zero1()), "protected against the loss of 1 node at a time")
    assert "800 (800 B)" in text
    assert "no other rank has it" in text
    assert "recomputed from master" in text
    assert "the same on every rank of data-parallel, 4 ranks" in text
    assert "804 B into the own slot, 800 B to each replica" in text
    assert text.endswith("\n  protected against the loss of 1 node at a time")
    print(text)
