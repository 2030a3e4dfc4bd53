"""Versions of megatron-core: which are allowed, and whether this one is as the table says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import UnsupportedError
from ff_megatron import versions

ROOT = Path(__file__).parents[2]
ALLOWED = ("0.16.1", "0.16.1+55ac708", "0.16.7", "0.17.0", "0.17.1", "0.18.2", "0.19.2", "0.19.11")
REFUSED = ("0.15.3", "0.16.0", "0.16.1rc2", "0.20.0rc0", "0.20.0", "1.0.0", "0.16")


def of_release(monkeypatch: pytest.MonkeyPatch, version: str) -> versions.Series:
    monkeypatch.setattr("megatron.core.__version__", version)
    return versions.series()


@pytest.mark.parametrize("version", ALLOWED)
def test_allowed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    assert of_release(monkeypatch, version) is versions.SERIES[version[:4]]


@pytest.mark.parametrize("version", REFUSED)
def test_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        of_release(monkeypatch, version)
    text = str(caught.value)
    assert text.startswith(f"megatron-core {version} cannot be protected; allowed: 0.16.1 to {versions.NEWEST}")
    assert f"pip install 'megatron-core=={versions.NEWEST}'" in text and "leave --ff-failover out" in text


def test_set_up_installs_the_oldest_and_ci_tests_the_newest_too() -> None:
    assert f"megatron-core=={versions.OLDEST}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"make test MEGATRON={versions.NEWEST} " in (ROOT / ".ci/run").read_text()
    first, last = (min(versions.SERIES), max(versions.SERIES))
    assert versions.OLDEST.startswith(f"{first}.") and versions.NEWEST.startswith(f"{last}.")
    assert f'"megatron-core>={versions.OLDEST},<0.{int(last[2:]) + 1}"' in (ROOT / "setup.py").read_text()


def test_auxiliary_losses_can_be_cleared() -> None:
    versions.series().clear_aux_losses()


def test_what_this_version_has_is_known() -> None:
    """Its bucket groups and its rerun state machine, real ones, made without ranks."""
    from megatron.core.distributed import DistributedDataParallelConfig, param_and_grad_buffer

    group = param_and_grad_buffer._ParamAndGradBucketGroup([], DistributedDataParallelConfig(), None, 1)
    assert versions.unknown([group]) == []
    assert {*versions.series().flags, *versions.series().links} <= vars(group).keys()
    group.sent_early = True
    assert versions.unknown([group]) == ["_ParamAndGradBucketGroup has 'sent_early'"]


def test_sums_of_an_interrupted_iteration_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lengths of packed sequences, of which megatron.training in 0.18 makes the throughput of the log."""
    training: Any = SimpleNamespace(_seqlen_stats_in_iteration=torch.ones(2), _seqlen_stats_active=True)
    monkeypatch.setitem(sys.modules, "megatron.training.training", training)
    versions.drop_sums()
    forgotten = bool(versions.series().sums)
    assert training._seqlen_stats_active is not forgotten
    assert training._seqlen_stats_in_iteration.tolist() == ([0.0, 0.0] if forgotten else [1.0, 1.0])
    training._seqlen_stats_in_iteration = None
    training._seqlen_stats_active = False
    versions.drop_sums()
