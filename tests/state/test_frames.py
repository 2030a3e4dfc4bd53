"""Which modules are the script's."""

from __future__ import annotations

import sys

import pytest

from ff_core.state import frames


def test_a_second_name_of_the_script_is_no_module_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank in which `datasets` is imported by the script has it, a spare that imports that ahead has not."""
    monkeypatch.setitem(sys.modules, "__mp_main__", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "of_the_user", sys.modules[__name__])
    assert frames.is_users_module("of_the_user") and "of_the_user" in frames.users_modules()
    assert "__mp_main__" not in frames.users_modules()
    assert frames.is_users_module("__mp_main__")  # what a class says in a spawned process of a data loader


def test_a_module_that_replaces_one_of_a_library_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "replaced", pytest)
    assert "replaced" not in frames.users_modules() and "replaced" not in frames.users_modules()
    monkeypatch.setitem(sys.modules, "replaced", sys.modules[__name__])
    assert "replaced" in frames.users_modules()
