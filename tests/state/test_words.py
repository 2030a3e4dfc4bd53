from __future__ import annotations

from ff_core.state.words import some_of


def test_the_first_three_and_how_many_more() -> None:
    assert some_of(["a"]) == "a" and some_of(["a", "b", "c"]) == "a, b, c"
    assert some_of(list("abcde")) == "a, b, c and 2 more"
    assert some_of(["a b", "c"], between="; ") == "a b; c"
    assert some_of(list("abcd"), between="; ", more="more tensors") == "a; b; c; and 1 more tensors"
