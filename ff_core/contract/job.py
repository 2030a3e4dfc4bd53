"""What `fftrain run` was asked to do, as data. The launcher makes it, the controller and the agents carry it out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

#: Exit code of an agent whose job goes on without it, or that cannot hear the controller: its launcher may come again.
LOST_CODE = 75
#: Exit code of a job that found no place for a rank, and that nobody came to help (EX_UNAVAILABLE).
NO_PLACE_CODE = 69


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job. Everything an agent needs travels to it in this shape (msgpack, plain values only).

    entrypoint: argv after the interpreter: ["train.py", "--x"] or ["-m", "pkg.mod", "--x"] (as torchrun's);
    no_python: run argv[0] itself.
    import_hooks: workers watch imports, so that frameworks need not call FFTrainer themselves.
    nodes: number of failure domains (real or emulated) that play ranks; before the job has started, the fewest.
    most_nodes: how many may play; 0: as many as `nodes`.  nproc_per_node: ranks per failure domain.
    numbered: every node was told its number (--node-rank).
    join_timeout_s, last_call_s: how long nodes are waited for (see ff_core.controller.rendezvous).
    emulated: the failure domains share one machine; LOCAL_RANK and LOCAL_WORLD_SIZE then count over the machine.
    max_restarts: restarts of the whole script when failover is impossible.
    master_addr, master_port: the torch TCPStore the launcher hosts.
    config: the settings as the launcher knows them, Settings.to_wire().
    out_dir: where events.jsonl, logs/ and failure records go; empty: nothing is written.
    injections: texts of --inject.  show_output, log_prefix: whether worker output is shown, and with
    "[rank]: " before it.
    shutdown_timeout_s: how long workers have between a signal that stops the job and SIGKILL, seconds.
    hash_seed: PYTHONHASHSEED of every worker process (see env.hash_seed).
    """

    entrypoint: list[str]
    nodes: int
    nproc_per_node: int
    master_addr: str
    master_port: int
    run_id: str = "fftrain"
    emulated: bool = False
    no_python: bool = False
    import_hooks: bool = True
    max_restarts: int = 0
    out_dir: str = ""
    injections: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    show_output: bool = True
    log_prefix: bool = True
    shutdown_timeout_s: float = 30.0
    hash_seed: str = "0"
    most_nodes: int = 0
    numbered: bool = False
    join_timeout_s: float = 600.0
    last_call_s: float = 30.0

    @property
    def world_size(self) -> int:
        return self.nodes * self.nproc_per_node

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, fields: dict[str, Any]) -> JobSpec:
        return cls(**fields)
