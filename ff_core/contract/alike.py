"""What the nodes of a job must have alike, and what they had better: gathered on each node, compared when it joins."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ff_core.contract.env import RANK_VARIABLES
from ff_core.contract.job import JobSpec

#: Of the settings: the secret is proved, and where a value came from may differ.
_UNSEEN = ("secret", "origins")
_PACKAGES = ("torch", "fftrain", "deepspeed", "megatron-core", "numpy")
#: Variables by which results or their order may depend on the node; none that may hold a secret.
_VARIABLES = re.compile(
    "(PYTHON|OMP_|MKL_|KMP_|GOMP_|OPENBLAS_|CUBLAS_|CUDNN_|CUDA_DEVICE_MAX|CUDA_LAUNCH|NVIDIA_TF32|NCCL_ALGO|NCCL_PROTO"
    "|TORCH|PYTORCH|ATEN_|NVTE_|DS_|LC_|LANG$|TZ$|TOKENIZERS_)"
)
_INSTRUCTIONS = ("avx2", "avx512f", "amx_tile", "asimd", "sve")


def launch_line(job: JobSpec) -> dict[str, str]:
    """What was asked for at this node's `fftrain run`, option -> value, and the versions that will carry it out. To be
    the same on all nodes."""
    line = {
        "--nnodes": job.nodes if job.most_nodes <= job.nodes else f"{job.nodes}:{job.most_nodes}",
        "--node-rank": "given" if job.numbered else "",
        "--nproc-per-node": job.nproc_per_node,
        "--max-restarts": job.max_restarts,
        "--rdzv-id": job.run_id,
        "--no-python": job.no_python,
        "--no-import-hooks": not job.import_hooks,
        "--shutdown-timeout": f"{job.shutdown_timeout_s:g}",
        "--inject": job.injections,
        "script and its arguments": " ".join(job.entrypoint),
        "PYTHONHASHSEED": job.hash_seed,
        **{f'setting "{name}"': value for name, value in job.config.items() if name not in _UNSEEN},
        "version of Python": platform.python_version(),
        **{f"version of {name}": _version(name) for name in _PACKAGES},
    }
    return {name: str(value) for name, value in line.items()}


def machine() -> dict[str, str]:
    """What may change a rank's results, or what it can do, when it moves to another node."""
    found = {f"${name}": value for name, value in os.environ.items() if _VARIABLES.match(name)}
    for name in (*RANK_VARIABLES, "PYTHONHASHSEED"):
        found.pop(f"${name}", None)
    umask = os.umask(0)
    os.umask(umask)
    found |= {"umask": oct(umask), "priority": str(os.nice(0)), "working directory": str(Path.cwd())}
    if "OMP_NUM_THREADS" not in os.environ:
        found["number of processors"] = str(len(os.sched_getaffinity(0)))
    found["vector instructions"] = _instructions()
    found["GPUs"] = ", ".join(sorted(_gpus()))
    return found


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What differs, for a person: "--nnodes is 3, at node 0 it is 2"."""
    none = "not there"
    return [
        f"{name} is {theirs.get(name, '') or none}, at node 0 it is {ours.get(name, '') or none}"
        for name in dict.fromkeys((*ours, *theirs))
        if theirs.get(name, "") != ours.get(name, "")
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _instructions() -> str:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return " ".join(name for name in _INSTRUCTIONS if name in words)


def _gpus() -> list[str]:
    models = []
    for file in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        found = re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE)
        models.append(found.group(1) if found else "unknown")
    return models
