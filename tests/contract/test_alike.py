"""What nodes compare when they join."""

from __future__ import annotations

import os

import pytest

from ff_core.contract import alike
from ff_core.contract.job import JobSpec


def line(**changes: object) -> dict[str, str]:
    fields = {"entrypoint": ["train.py", "--x"], "nodes": 2, "nproc_per_node": 2, "master_addr": "h", "master_port": 1}
    return alike.launch_line(JobSpec(**{**fields, **changes}))  # type: ignore[arg-type]


def test_equal_lines_have_no_differences() -> None:
    assert alike.differences(line(master_port=2, out_dir="/x"), line()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nodes": 3}, "--nnodes is 3, at node 0 it is 2"),
        ({"max_restarts": 1}, "--max-restarts is 1, at node 0 it is 0"),
        ({"entrypoint": ["train.py", "--y"]}, "script and its arguments is train.py --y, at node 0 it is train.py --x"),
        ({"config": {"replicas": 2}}, 'setting "replicas" is 2, at node 0 it is not there'),
        ({"hash_seed": "1"}, "PYTHONHASHSEED is 1, at node 0 it is 0"),
    ],
)
def test_a_difference_names_option_and_both_values(changes: dict[str, object], expected: str) -> None:
    assert alike.differences(line(**changes), line()) == [expected]


def test_secrets_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden")
    assert "hidden" not in str(line(config={"secret": "hidden"})) + str(alike.machine())


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = line()
    monkeypatch.setattr(alike, "_version", lambda package: "0.1")
    assert any(text.startswith("version of torch is 0.1, at node 0 it is ") for text in alike.differences(line(), ours))


def test_a_machine_is_described_by_what_changes_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, mask = alike.machine(), os.umask(0o077)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        texts = alike.differences(alike.machine(), before)
    finally:
        os.umask(mask)
    assert "$NVIDIA_TF32_OVERRIDE is 1, at node 0 it is 0" in texts and "$OMP_NUM_THREADS is 4" in str(texts)
    assert any(text.startswith("umask is 0o77") for text in texts)
