"""The training script as a plain torchrun job: reproducible, restartable, and its data what it says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from gpt.data import ByteWindows, ResumedSampler, library_sources, text_file  # noqa: E402
from gpt.model import SIZES, Gpt  # noqa: E402

from tests.e2e.jobs import start  # noqa: E402


def train(directory: Path, *arguments: str, config: str = "zero1_bf16") -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
        "scripts/train_gpt.py", "--deepspeed_config", f"configs/deepspeed/{config}.json", "--size", "tiny",
        "--sequence", "32", "--data-cache", str(directory.parent / "text"), *arguments,
    ]  # fmt: skip
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start(command, str(ROOT / "scripts" / "train_gpt.py"), cwd=ROOT, **streams)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run(directory: Path, *arguments: str, config: str = "zero1_bf16") -> list[dict[str, Any]]:
    """Train on two ranks; the ranks' results."""
    done = train(directory, "--result", str(directory / "r.json"), *arguments, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((directory / f"r.rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_same_bits_on_every_run_with_dropout_workers_and_accumulation(tmp_path: Path) -> None:
    arguments = ("--steps", "6", "--epochs", "2", "--gas", "2", "--num-workers", "1")
    first = run(tmp_path / "a", *arguments)
    assert first == run(tmp_path / "b", *arguments)
    assert first[0]["parameters_sha256"] == first[1]["parameters_sha256"]
    assert first[0]["optimizer_sha256"] != first[1]["optimizer_sha256"]  # each has its own partition
    assert first[0]["rng_sha256"] != first[1]["rng_sha256"]
    assert list(first[0]["losses"]) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.slow
def test_seed_and_dropout_matter(tmp_path: Path) -> None:
    hashes = {
        run(tmp_path / str(number), "--steps", "2", *arguments)[0]["parameters_sha256"]
        for number, arguments in enumerate(((), ("--seed", "2"), ("--dropout", "0")))
    }
    assert len(hashes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero0_fp32", "zero0_bf16", "zero1_fp32", "zero2_bf16", "zero2_fp32", "zero3_bf16"])
def test_every_configuration_trains(tmp_path: Path, config: str) -> None:
    results = run(tmp_path / "run", "--steps", "3", "--loss-log", str(tmp_path / "losses.jsonl"), config=config)
    assert results[0]["parameters_sha256"] == results[1]["parameters_sha256"]
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert {str(line["step"]): line["loss"] for line in lines} == results[0]["losses"]
    assert len(lines) == 3


@pytest.mark.slow
def test_deepspeed_cpu_adam(tmp_path: Path) -> None:
    results = run(tmp_path / "run", "--steps", "3", "--optimizer", "cpu_adam", config="zero1_fp32")
    assert results[0]["steps"] == 3
    assert results[0]["losses"]["3"] < results[0]["losses"]["1"]


def test_restart_from_a_checkpoint_without_dropout_is_exact(tmp_path: Path) -> None:
    """With the learning rate's schedule and the position in the data; RNG is not in DeepSpeed's checkpoints."""
    plain = ("--dropout", "0", "--steps", "6", "--epochs", "2")
    checkpoint = ("--checkpoint", str(tmp_path / "ckpt"))
    log = ("--loss-log", str(tmp_path / "losses.jsonl"))
    whole = run(tmp_path / "a", *plain, *checkpoint, "--checkpoint-every", "4", *log)
    (tmp_path / "losses.jsonl").write_text("")
    resumed = run(tmp_path / "b", *plain, *checkpoint, *log)
    assert list(resumed[0]["losses"]) == ["5", "6"]
    assert resumed[0]["losses"]["6"] == whole[0]["losses"]["6"]
    for name in ("steps", "parameters_sha256", "optimizer_sha256"):
        assert [result[name] for result in resumed] == [result[name] for result in whole]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "5", "--epochs", "2"), "--steps 5 is not a multiple of --epochs 2"),
        (("--steps", "0"), "--steps 0: allowed: 1 or more"),
        (("--checkpoint-every", "3"), "--checkpoint-every needs --checkpoint DIR"),
        (("--size", "huge"), "invalid choice: 'huge'"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    import train_gpt

    with pytest.raises(SystemExit) as caught:
        train_gpt.parse_arguments(["--deepspeed_config", "ds.json", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_text_is_the_library_and_stays_the_same(tmp_path: Path) -> None:
    sources = library_sources()
    assert sources == library_sources()
    assert {"argparse.py", "typing.py"} <= {path.name for path in sources}
    assert not any("site-packages" in path.parts for path in sources)
    file = text_file(tmp_path)
    assert file.read_bytes().startswith(sources[0].read_bytes())
    assert file.stat().st_size == sum(path.stat().st_size + 1 for path in sources)
    before = file.stat().st_mtime_ns
    assert text_file(tmp_path) == file
    assert file.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [file]


def test_windows_are_shifted_by_one_and_cover_the_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(bytes(range(200)))
    data = ByteWindows(file, sequence=9, count=20)
    x, y = data[0]
    assert x.tolist() == list(range(9))
    assert y.tolist() == list(range(1, 10))
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert data[19][1][-1] == 199
    assert len({int(data[i][0][0]) for i in range(20)}) == 20
    with pytest.raises(SystemExit, match="shorter than one sequence of 200 bytes"):
        ByteWindows(file, sequence=200, count=1)


def test_resumed_sampler_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(bytes(200))
    sampler = ResumedSampler(ByteWindows(file, 9, 20), num_replicas=2, rank=1, shuffle=True, seed=3)
    sampler.set_epoch(1)
    everything = list(sampler)
    sampler.skip = 4
    assert list(sampler) == everything[4:]
    assert len(sampler) == 6


@pytest.mark.parametrize(("size", "low", "high"), [("tiny", 1e5, 2e5), ("5m", 4.9e6, 5.2e6), ("20m", 1.9e7, 2.1e7)])
def test_sizes(size: str, low: float, high: float) -> None:
    with torch.device("meta"):
        model = Gpt(SIZES[size], 128, 0.1)
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_model_is_causal() -> None:
    torch.manual_seed(0)
    model = Gpt(SIZES["tiny"], 16, 0.0).eval()
    seen: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randint(0, 256, (1, 16))
    changed = x.clone()
    changed[0, 9:] = 0
    for batch in (x, changed):
        model(batch, batch)
    assert torch.allclose(seen[0][0, :9], seen[1][0, :9], atol=1e-6)
    assert not torch.allclose(seen[0][0, 9:], seen[1][0, 9:], atol=1e-3)
