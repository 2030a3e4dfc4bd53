"""The collector is off inside, and afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from ff_core.worker import garbage


def test_off_inside_on_afterwards_whatever_happens() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), garbage.put_off():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_one_who_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with garbage.put_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
