"""What `fftrain run` does not take, and what to write instead: other launchers' options, and those of torchrun's that
would be ignored here. Nothing is dropped silently, and no refusal is without an alternative."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

from ff_core.errors import ConfigError

_PER_NODE = "--nproc-per-node N (ranks of each node)"
_HOSTS = "the same fftrain run on each node (by srun, pdsh or ssh) with --nnodes and --rdzv-endpoint"
_DEVICES = f"CUDA_VISIBLE_DEVICES before fftrain run, with {_PER_NODE}"
_AFTER = "it belongs to the script: write it after the script's name"
_LOGS = "--out-dir DIR (logs go to DIR/logs)"
_HANG = 'the "ff_failover" block or --ff-config FILE ("hang_timeout_s", "heartbeat_timeout_s")'
_FIXED = "--nnodes MIN:MAX for the start; then the job keeps its size when a node is lost"
_BIND = "OMP_NUM_THREADS, and numactl around fftrain run"

#: launcher -> its option without dashes, "_" for "-" -> what to write here.
_FOREIGN: dict[str, dict[str, str]] = {
    "deepspeed": {
        "num_gpus": _PER_NODE, "num_accelerators": _PER_NODE, "num_nodes": "--nnodes N", "include": _DEVICES,
        "exclude": _DEVICES, "i": _DEVICES, "e": _DEVICES, "hostfile": _HOSTS, "H": _HOSTS, "launcher": _HOSTS,
        "launcher_args": _HOSTS, "force_multi": _HOSTS, "no_ssh": _HOSTS, "no_ssh_check": _HOSTS, "ssh_port": _HOSTS,
        "elastic_training": _FIXED, "min_elastic_nodes": _FIXED, "max_elastic_nodes": _FIXED,
        "bind_cores_to_rank": _BIND, "bind_core_list": _BIND, "enable_each_rank_log": _LOGS, "save_pid": _LOGS,
        "no_local_rank": "nothing: no script gets --local_rank, LOCAL_RANK is in its environment",
        "autotuning": "deepspeed --autotuning first, then fftrain run with what it found",
        "deepspeed": _AFTER, "deepspeed_config": _AFTER,
    },
    "accelerate": {
        "num_processes": _PER_NODE, "num_machines": "--nnodes N", "machine_rank": "--node-rank N",
        "main_process_ip": "--master-addr ADDRESS", "main_process_port": "--master-port PORT", "gpu_ids": _DEVICES,
        "num_cpu_threads_per_process": "OMP_NUM_THREADS", "multi_gpu": _PER_NODE,
        "mixed_precision": "ACCELERATE_MIXED_PRECISION=bf16 in the environment, or Accelerator(mixed_precision=...)",
        "use_deepspeed": "ACCELERATE_USE_DEEPSPEED=true in the environment, or Accelerator(deepspeed_plugin=...)",
        "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE=FILE in the environment",
        "zero_stage": "the DeepSpeed configuration", "gradient_accumulation_steps": "the DeepSpeed configuration",
        "config_file": "its settings as torchrun's options, and Accelerate's own as ACCELERATE_... in the environment",
        "use_fsdp": "nothing: FSDP is not protected", "same_network": "nothing", "cpu": "--nproc-per-node N",
        "dynamo_backend": "ACCELERATE_DYNAMO_BACKEND in the environment",
    },
    "dlrover-run": {
        "network_check": "nothing: run a network test of your cluster before fftrain run",
        "comm_perf_test": "nothing: run a network test of your cluster before fftrain run",
        "node_unit": _FIXED, "auto_config": f"{_PER_NODE} and --nnodes N", "auto_tunning": "nothing",
        "exclude_straggler": "fftrain report DIR, which shows slow ranks", "accelerator": "nothing",
        "save_at_breakpoint": "--spares 1: the state of each iteration is kept anyway",
        "training_port": "--master-port PORT", "precheck": "nothing",
    },
    "ft_launcher": {
        "ignore_missing_fault_tol_cfg": _HANG, "ignore_missing_cfg": _HANG, "restart_policy": "--max-restarts N",
    },
    "torch.distributed.launch": {"use_env": "nothing: LOCAL_RANK is in the script's environment"},
    "mpirun": {"np": _PER_NODE, "n": _PER_NODE, "host": _HOSTS, "world_size": f"--nnodes N and {_PER_NODE}"},
}  # fmt: skip
_LAUNCHERS = {
    *_FOREIGN, "torchrun", "torch.distributed.run", "accelerate.commands.launch", "deepspeed.launcher.runner",
    "deepspeed.launcher.launch", "mpiexec", "srun", "composer", "colossalai",
}  # fmt: skip


def refuse_unknown(words: Sequence[str], known: Collection[str]) -> None:
    """Raise ConfigError for `words`, which begin with an option that is not among `known`: what to write instead."""
    texts = []
    for word in words:
        if not word.startswith("-"):
            if word.endswith(".py"):
                break
            continue
        option = word.partition("=")[0]
        name = option.lstrip("-").replace("-", "_")
        launcher = next((who for who, options in _FOREIGN.items() if name in options), "")
        if launcher:
            texts.append(f"{option} is an option of {launcher}'s; here: {_FOREIGN[launcher][name]}")
        elif name.startswith("ft_"):
            texts.append(f"{option} is an option of ft_launcher's; here: {_HANG}")
        elif word is words[0]:
            close = difflib.get_close_matches(option, known, n=2, cutoff=0.75)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            texts.append(
                f"{option} is not an option of fftrain run, which takes torchrun's and some more; {meant}"
                "An option of the script stands after the script's name. All options: fftrain run --help"
            )
    raise ConfigError("\n  ".join(texts))


def refuse_launcher(script: str) -> None:
    """Raise ConfigError if `script`, a program's, module's or missing file's name, is a launcher's or Python's."""
    name = Path(script).name
    if name in _LAUNCHERS:
        raise ConfigError(
            f"{script} is a launcher, and fftrain run takes its place: write fftrain run with torchrun's options "
            f"(--nproc-per-node N ...) and then the script, without {name}"
        )
    if name.startswith("python") and not Path(script).exists():
        raise ConfigError(f"{script}: the interpreter is not named: write fftrain run [options] script.py")


def refuse_unsupported(args: argparse.Namespace) -> None:
    """Options of torchrun's that would be ignored here: not silently."""
    reasons: list[tuple[bool, str, str]] = [
        (args.rdzv_backend not in ("static", "c10d"), f"--rdzv-backend {args.rdzv_backend}",
         "static or c10d: nodes meet at --rdzv-endpoint, there is no other rendezvous"),
        (bool(args.local_ranks_filter), f"--local-ranks-filter {args.local_ranks_filter}",
         "nothing: all ranks are shown, or with --redirects 3 none; each has its own log file below --out-dir"),
        (any(getattr(args, f"duplicate_{name}_filters", "") for name in ("stdout", "stderr")),
         "--duplicate-stdout/stderr-filters",
         "nothing: filter the log files below --out-dir"),
        (args.logs_specs is not None, f"--logs-specs {args.logs_specs}", "nothing: logs go to DIR/logs/RESTART/rankR"),
        (args.event_log_handler != "null", f"--event-log-handler {args.event_log_handler}",
         "null: events are written to DIR/events.jsonl with --out-dir DIR"),
        (getattr(args, "numa_binding", None) is not None, "--numa-binding",
         "nothing: a spare may have to play any rank of its node, so it is not bound; use numactl around fftrain"),
        (bool(getattr(args, "virtual_local_rank", False)), "--virtual-local-rank",
         "nothing: a spare sees all devices of its node, as it may have to play any of its ranks"),
        (args.role != "default", f"--role {args.role}", "default: all ranks of a job play one role"),
        (args.standalone and args.nnodes not in ("1", "1:1"), f"--standalone with --nnodes {args.nnodes}", "one node"),
    ]  # fmt: skip
    for wrong, option, allowed in reasons:
        if wrong:
            raise ConfigError(f"{option}: allowed: {allowed}")
