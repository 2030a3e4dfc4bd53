"""Configurations of the kind that LLaMA-Factory and axolotl ship, under Hugging Face's Trainer: with kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import fftrain, uninterrupted

HERE = Path(__file__).parent
SCRIPT = str(HERE / "shipped.py")
FOLDER = HERE.parents[1] / "configs" / "deepspeed"
#: name -> what the user asks the Trainer for
CONFIGS = {
    "like_llama_factory/z0": "fp16",
    "like_llama_factory/z1": "bf16",
    "like_llama_factory/z2": "fp32",
    "like_llama_factory/z2_offload": "bf16",
    "like_llama_factory/z2_json_optimizer": "fp16",
    "like_llama_factory/z3": "fp16",
    "like_llama_factory/z3_offload_optimizer": "bf16",
    "like_llama_factory/z3_offload": "fp16",
    "like_llama_factory/z3_nvme": "bf16",
    "like_axolotl/zero1": "bf16",
    "like_axolotl/zero1_bf16_fp32_gradients": "bf16",
    "like_axolotl/zero2": "fp16",
    "like_axolotl/zero2_bf16_json_optimizer": "bf16",
    "like_axolotl/zero3": "fp32",
    "like_axolotl/zero3_bf16": "bf16",
    "like_axolotl/zero3_bf16_offload_all": "bf16",
    "like_axolotl/zero3_bf16_twin_flow": "bf16",
    "like_axolotl/zero3_bf16_nvme": "bf16",
}
POINTS = ("forward", "backward", "step", "after-step")  # two for each configuration
NVME = tuple(name for name in CONFIGS if name.endswith("nvme"))


def path_of(name: str) -> str:
    return str(FOLDER / f"{name}.json")


def test_every_file_is_run() -> None:
    assert {path_of(name) for name in CONFIGS} == {str(path) for path in FOLDER.glob("*/*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in NVME])
def test_the_trainer_goes_on(name: str, tmp_path: Path) -> None:
    words = ["--deepspeed", path_of(name), "--precision", CONFIGS[name]]
    first = list(CONFIGS).index(name)
    kills = (f"1 {2 + first % 2} {POINTS[first % 4]}", f"0 5 {POINTS[(first + 2) % 4]}")

    def places(folder: Path) -> list[str]:
        return ["--result", str(folder / "result.json")]

    wanted = results(uninterrupted(SCRIPT, words, places, ranks=2), 2)
    job = fftrain(
        tmp_path, [SCRIPT, *words, *places(tmp_path)], "--emulate-nodes", "2", "--spares", "1", *injections(*kills),
        ranks=2, timeout_s=400,
    )  # fmt: skip
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)
