"""The worker's environment against what torchrun itself gives its workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.contract.env import RANK_VARIABLES, hash_seed, set_default_threads, spare_env, worker_env
from ff_core.contract.job import JobSpec
from ff_core.errors import ConfigError


def job(**changes: object) -> JobSpec:
    fields = {"entrypoint": ["train.py"], "nodes": 1, "nproc_per_node": 2, "master_addr": "127.0.0.1", "master_port": 1}
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_equals_torchruns(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(
        "import json, os, sys\n"
        "with open(os.path.join(sys.argv[1], os.environ['RANK'] + '.json'), 'w') as file:\n"
        "    json.dump(dict(os.environ), file)\n"
    )
    before = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3", str(script)]
    subprocess.run([*argv, str(tmp_path)], env=before, check=True, capture_output=True, timeout=200)
    for rank in range(2):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        changes = {"master_addr": theirs["MASTER_ADDR"], "master_port": int(theirs["MASTER_PORT"]), "max_restarts": 3}
        ours = worker_env(job(**changes, run_id=theirs["TORCHELASTIC_RUN_ID"], out_dir=str(tmp_path)), rank, 0)
        theirs = {name: value for name, value in theirs.items() if name not in before}
        assert Path(ours.pop("TORCHELASTIC_ERROR_FILE")).name == Path(theirs.pop("TORCHELASTIC_ERROR_FILE")).name
        # Not a rank's, but the launcher's own environment; and a setting that comm makes for its groups.
        added = {"TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "LC_CTYPE"}
        assert ours == {name: value for name, value in theirs.items() if name not in added}


def test_nodes_and_emulated_nodes() -> None:
    real = worker_env(job(nodes=2, nproc_per_node=3), 4, 1)
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "WORLD_SIZE")
    assert [real[name] for name in names] == ["1", "3", "1", "2", "6"]
    assert real["TORCHELASTIC_RESTART_COUNT"] == "1"
    emulated = worker_env(job(nodes=2, nproc_per_node=3, emulated=True), 4, 0)
    assert [emulated[name] for name in names] == ["4", "6", "0", "1", "6"]


def test_error_file_only_with_an_output_directory() -> None:
    assert "TORCHELASTIC_ERROR_FILE" not in worker_env(job(), 0, 0)
    assert worker_env(job(out_dir="/o"), 1, 2)["TORCHELASTIC_ERROR_FILE"] == "/o/logs/2/rank1/error.json"


def test_a_rank_outside_the_job() -> None:
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank = {rank}: allowed: 0 to 1"):
            worker_env(job(), rank, 0)


def test_a_spare_has_nothing_that_names_a_rank() -> None:
    everything = worker_env(job(out_dir="/o"), 0, 0)
    assert set(everything) == set(RANK_VARIABLES)
    assert spare_env({**everything, "PATH": "/bin", "OMP_NUM_THREADS": "1"}) == {"PATH": "/bin", "OMP_NUM_THREADS": "1"}


def test_threads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for nproc, given, expected in ((1, None, None), (2, "5", "5"), (2, None, "1")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        set_default_threads(nproc)
        assert os.environ.get("OMP_NUM_THREADS") == expected
        assert ("Setting OMP_NUM_THREADS" in capsys.readouterr().err) == (expected != given)


def test_one_hash_seed_per_job() -> None:
    assert hash_seed({}) == hash_seed({"PYTHONHASHSEED": ""}) == "0"
    assert hash_seed({"PYTHONHASHSEED": "17"}) == "17"


def test_a_hash_seed_per_process_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PYTHONHASHSEED=random.*allowed: a number"):
        hash_seed({"PYTHONHASHSEED": "random"})
