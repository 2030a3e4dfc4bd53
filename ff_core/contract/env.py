"""The environment of a worker: the variables that torchrun gives to a rank, and the ones a spare must not have."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ff_core.contract.job import JobSpec
from ff_core.errors import ConfigError

#: What tells a process which rank it is. A spare has none of these until it gets a rank: a library that reads one while
#: it is imported would otherwise keep another rank's value.
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_NAME",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_ERROR_FILE",
)

#: In place of a module's name in what a spare must not import ahead: nothing at all.
EVERYTHING = "*"

_OMP_MESSAGE = """
*****************************************
Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, to avoid your system being \
overloaded, please further tune the variable for optimal performance in your application as needed.
*****************************************"""


def worker_env(job: JobSpec, rank: int, restart_count: int) -> dict[str, str]:
    """torchrun's variables for `rank`, to be put over the agent's own environment.

    restart_count: restarts of the whole script so far; a failover is not one. Under `job.emulated` the failure domains
    share a machine, which therefore looks to the script as it would under torchrun: LOCAL_RANK counts over the machine
    and there is one group. TORCHELASTIC_ERROR_FILE is there only if the job has an output directory.
    Raises ValueError for a rank outside the job.
    """
    if not 0 <= rank < job.world_size:
        raise ValueError(f"rank = {rank}: allowed: 0 to {job.world_size - 1}")
    machines, per_machine = (1, job.world_size) if job.emulated else (job.nodes, job.nproc_per_node)
    env = {
        "RANK": rank,
        "LOCAL_RANK": rank % per_machine,
        "GROUP_RANK": rank // per_machine,
        "ROLE_RANK": rank,
        "ROLE_NAME": "default",
        "WORLD_SIZE": job.world_size,
        "LOCAL_WORLD_SIZE": per_machine,
        "GROUP_WORLD_SIZE": machines,
        "ROLE_WORLD_SIZE": job.world_size,
        "MASTER_ADDR": job.master_addr,
        "MASTER_PORT": job.master_port,
        "TORCHELASTIC_RESTART_COUNT": restart_count,
        "TORCHELASTIC_MAX_RESTARTS": job.max_restarts,
        "TORCHELASTIC_RUN_ID": job.run_id,
        # The store is served by the launcher: a rank 0 that hosted its own would take it to the grave.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if job.out_dir:
        env["TORCHELASTIC_ERROR_FILE"] = rank_dir(log_dir(job, restart_count), rank) / "error.json"
    return {name: str(value) for name, value in env.items()}


def spare_env(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A copy of `environ` without what names a rank."""
    return {name: value for name, value in environ.items() if name not in RANK_VARIABLES}


def hash_seed(environ: Mapping[str, str] = os.environ) -> str:
    """PYTHONHASHSEED for all worker processes of a job: the user's, or "0".

    The order of a set of strings depends on it. Left to Python, each process draws its own, and a replacement (or the
    script started again from a checkpoint) would see another order than the rank it plays. Raises ConfigError for
    "random", which asks for just that.
    """
    seed = environ.get("PYTHONHASHSEED", "")
    if seed == "random":
        raise ConfigError(
            "PYTHONHASHSEED=random: a replacement would see sets of strings in another order than the rank that it "
            "plays; allowed: a number from 0 to 4294967295, or leave it out (then it is 0 in every worker)"
        )
    return seed or "0"


def log_dir(job: JobSpec, restart_count: int) -> Path:
    """Where the logs of one run of the script go: OUT_DIR/logs/RESTART."""
    return Path(job.out_dir) / "logs" / str(restart_count)


def rank_dir(logs: Path, rank: int) -> Path:
    """Where one rank's files go below `log_dir`."""
    return logs / f"rank{rank}"


def set_default_threads(nproc: int) -> None:
    """OMP_NUM_THREADS=1 for several processes on a machine where it is not set, with torchrun's message on stderr."""
    if nproc > 1 and "OMP_NUM_THREADS" not in os.environ:
        print(_OMP_MESSAGE, file=sys.stderr, flush=True)
        os.environ["OMP_NUM_THREADS"] = "1"
