"""Megatron-LM's own pretrain_gpt.py, unmodified: MEGATRON_LM_PATH is a checkout of a tag, core_v0.16.1 to 0.19.

    TORCHDYNAMO_DISABLE=1 MEGATRON_LM_PATH=... fftrain run --nproc-per-node 4 pretrain_real.py --result out/r.json ...

Where there is no GPU, one is pretended. torch.compile would look at it; a spare has imported it before this script
runs, so it is disabled from outside. Beyond the shim this script answers what Megatron's training asks of a GPU: that
there is one, and its properties. The fused kernels of `megatron.legacy` build nothing in this version. PyPI's six,
regex, triton and pyyaml are needed too.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.simplefilter("ignore")
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
HERE = Path(__file__).resolve().parent
CHECKOUT = os.environ["MEGATRON_LM_PATH"]
sys.path[:0] = [CHECKOUT, str(HERE)]
import record  # noqa: E402
import torch  # noqa: E402
import typing_extensions  # noqa: E402

if sys.version_info < (3, 12):
    typing.override = typing_extensions.override  # type: ignore[attr-defined]  # core_v0.18 and newer are for 3.12


class _Loader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "pin_memory": False})


def _pretend_a_gpu() -> None:
    import cuda_on_cpu  # noqa: F401

    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: True
    properties = SimpleNamespace(major=8, minor=0, name="cpu", multi_processor_count=1, total_memory=1 << 34)
    torch.cuda.get_device_properties = lambda *args: properties  # type: ignore[assignment, misc]
    torch.utils.data.DataLoader = _Loader  # type: ignore[misc]


if not torch.cuda.is_available():
    _pretend_a_gpu()

import background_saves  # noqa: E402
import megatron.core.transformer.moe.moe_utils as moe_utils  # noqa: E402
import megatron.training.arguments as arguments  # noqa: E402
import megatron.training.training as training  # noqa: E402
from megatron.core import dist_checkpointing  # noqa: E402

if not hasattr(moe_utils, "te_general_gemm"):  # core_v0.16.1 asks without TransformerEngine, too
    moe_utils.te_general_gemm = None

if Path(CHECKOUT, "megatron/legacy/fused_kernels").is_dir():  # newer versions have none
    import megatron.legacy.fused_kernels as fused_kernels

    fused_kernels.load = lambda args: None


def _with_ours(original: Any) -> Any:
    def add(parser: Any) -> Any:
        parser.add_argument("--result", type=Path, required=True)
        background_saves.extra_args(parser)
        parser.add_argument("--die-in-save", nargs=2, type=int, metavar=("RANK", "ITERATION"))
        return original(parser)

    return add


def _deadly(original: Any) -> Any:
    """dist_checkpointing.save(), in which the rank of --die-in-save dies once, while the others go on with theirs."""

    def save(state: Any, directory: Any, *args: Any, **kwargs: Any) -> Any:
        ours = training.get_args()
        rank, iteration = ours.die_in_save or (None, None)
        died = Path(ours.result).with_name("died-in-save")
        if ours.rank == rank and Path(directory).name == f"iter_{iteration:07d}" and not died.exists():
            died.write_text(str(directory))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(state, directory, *args, **kwargs)

    return save


arguments.add_megatron_arguments = _with_ours(arguments.add_megatron_arguments)
dist_checkpointing.save = _deadly(dist_checkpointing.save)

if __name__ == "__main__":
    sys.argv[0] = f"{CHECKOUT}/pretrain_gpt.py"
    with record.recorded(training):
        runpy.run_path(sys.argv[0], run_name="__main__")
