"""A collective within a data iterator is refused at the first one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from ff_core.errors import UnsupportedError
from ff_megatron.data import Rewindable
from ff_megatron.in_data import InData
from ff_megatron.own_data import Stream

LISTENER = InData()


def call(group: object, operation: str) -> None:
    assert LISTENER.listening
    LISTENER.make(partial(call, group, operation), (), {})


def items() -> Iterator[int]:
    yield 1
    call(None, "allreduce")


@pytest.mark.parametrize("kind", [Rewindable, Stream])
def test_it_is_named_with_what_to_do(kind: type) -> None:
    source = kind(items())
    next(source)
    assert not LISTENER.listening
    with pytest.raises(UnsupportedError, match=r"allreduce\(\) is called within the data iterator.*behind next\(data"):
        next(source)
    assert not LISTENER.listening
