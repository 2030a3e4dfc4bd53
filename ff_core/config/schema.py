"""FailoverConfig: the one schema behind DeepSpeed's "ff_failover" block, Megatron's flags and the launcher.

Every field has a unit in its name, a default that needs no thought, and a scope: when it must be known. Values are
immutable once made; a wrong key, type, range or combination is a `ConfigError` that names the field, the value and
what is allowed. `python -m ff_core.config.table` prints the reference table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from ff_core.config.checkpoints import PersistConfig
from ff_core.config.explain import explain
from ff_core.config.fields import BLOCK, Bytes, BytesPerSecond, Scope, Strict, make_field
from ff_core.errors import ConfigError

MAX_TCP_STREAMS = 16
_PAGE = 4096


class FailoverConfig(Strict):
    """How a job is protected. Made by `FailoverConfig.from_dict`, which explains what is wrong with a bad block."""

    enabled: bool = make_field(
        Scope.JOB, False, "true or false", "Protect the job. Off: training runs as without this package."
    )
    replicas: int = make_field(
        Scope.JOB,
        1,
        "a whole number >= 0",
        "Copies of each rank's unique state in the memory of other failure domains. 0 protects against the death of a "
        "process only.",
        ge=0,
    )
    interval: int | Literal["auto"] = make_field(
        Scope.JOB,
        "auto",
        'a whole number >= 1, or "auto"',
        "Iterations from one copied version to the next, k, for the whole job. A failure loses at most 2k - 1 finished "
        "iterations, and the one that was running. auto: 1 where that keeps within overhead_budget, else as long as it "
        "takes, at most 16; chosen anew as the job goes on.",
    )
    overhead_budget: float = make_field(
        Scope.JOB,
        0.01,
        "a number > 0 and <= 1",
        'Of the iterations, what training may lose by copying, where interval is "auto".',
        gt=0,
        le=1,
    )
    commit: Literal["strict", "relaxed"] = make_field(
        Scope.JOB,
        "relaxed",
        '"strict" or "relaxed"',
        "relaxed: a step whose version is copied waits until the one copied before is safe everywhere; the others run "
        "ahead. strict: every step waits for that, and a failure loses at most k finished iterations. The same at "
        "interval 1.",
    )
    weights_edited: bool = make_field(
        Scope.JOB,
        False,
        "true or false",
        "true: the script itself writes into weights behind the optimizer step (a clamp, an average that is swapped in "
        "for an evaluation). A version is then copied when its iteration is over, low-precision weights included. "
        "DeepSpeed only.",
    )
    unsaved_variables: Literal["refuse", "ignore"] = make_field(
        Scope.JOB,
        "refuse",
        '"refuse" or "ignore"',
        "What happens after a failure if variables of the script are not what they were, and cannot be put back. "
        "refuse: the job ends, and names them; with more variables than can be looked at it does not begin. ignore: it "
        "goes on, with a warning.",
    )
    memory_limit_bytes: Bytes = make_field(
        Scope.JOB,
        0,
        'a whole number of bytes >= 0, or a size such as "64GiB"',
        "Host memory per node for slots and replicas; 0: what machine and cgroup have.",
        ge=0,
    )
    chunk_bytes: Bytes = make_field(
        Scope.JOB,
        1 << 20,
        'a multiple of 4096 from 4096 to 1 GiB, or a size such as "1MiB"',
        "Unit in which state is copied, checksummed and sent.",
        ge=_PAGE,
        le=1 << 30,
        multiple_of=_PAGE,
    )
    bandwidth_limit_bytes_per_s: BytesPerSecond = make_field(
        Scope.JOB,
        0,
        'a whole number >= 0, or a rate such as "500MiB/s" or "10Gbit/s"',
        "Most bytes per second that a rank sends to one replica; 0: unlimited.",
        ge=0,
    )
    transport: Literal["auto", "shm", "tcp", "ucx"] = make_field(
        Scope.JOB,
        "auto",
        '"auto", "shm", "tcp" or "ucx"',
        "How replicas travel. shm: shared memory, to nodes of the same host only. ucx: through libucx 1.13 or newer, "
        "which every node must have; for RDMA. auto: shm to real nodes of the same host, tcp to others and to emulated "
        "ones.",
    )
    tcp_streams: int | Literal["auto"] = make_field(
        Scope.JOB,
        "auto",
        'a whole number from 1 to 16, or "auto"',
        "TCP connections side by side from a rank to one replica, where replicas travel by tcp. auto: as many as the "
        "cores allow, at most 8, of which those carry versions that the first versions have shown to be worth it.",
    )
    pacing: bool = make_field(
        Scope.JOB,
        False,
        "true or false",
        "Send a version evenly until the next optimizer step is expected, and not while collectives run; false: at "
        "once.",
    )
    checksum: bool = make_field(
        Scope.JOB,
        True,
        "true or false",
        "CRC32C over everything copied. Off is for measurements only: a damaged copy would then be loaded.",
    )
    heartbeat_interval_s: float = make_field(
        Scope.JOB, 0.5, "seconds > 0", "Time between two signs of life of a node.", gt=0
    )
    heartbeat_timeout_s: float = make_field(
        Scope.JOB,
        5.0,
        "seconds > 0",
        "A node silent for this long is lost. (A process that dies is noticed at once.)",
        gt=0,
    )
    hang_timeout_s: float | Literal["auto"] = make_field(
        Scope.JOB,
        "auto",
        'seconds > 0, or "auto"',
        "A rank that makes no progress for this long is declared dead. auto: from the job's own iterations; twice the "
        "slowest and a second for a process that does nothing at all or is stopped, 10 minutes or more for others.",
    )
    halt_timeout_s: float = make_field(
        Scope.JOB,
        10.0,
        "seconds > 0",
        "A surviving process that does not confirm within this time that it has halted is killed and replaced.",
        gt=0,
    )
    verdict_timeout_s: float = make_field(
        Scope.JOB,
        30.0,
        "seconds > 0",
        "A collective that failed although no failure is known waits this long for one; then its own exception is "
        "raised.",
        gt=0,
    )
    join_timeout_s: float = make_field(
        Scope.JOB, 600.0, "seconds > 0", "Time a replacement has from its start until it is ready to train.", gt=0
    )
    place_timeout_s: float = make_field(
        Scope.JOB,
        600.0,
        "seconds >= 0",
        "Ranks of a lost node for which no spare and no other node is left wait so long for a node to come; then the "
        "job ends with exit code 69. 0: it ends at once.",
        ge=0,
    )
    regroup_timeout_s: float = make_field(
        Scope.JOB, 60.0, "seconds > 0", "Time for all ranks to connect anew; then recovery starts over.", gt=0
    )
    spares: int = make_field(
        Scope.JOB,
        0,
        "a whole number >= 0",
        "Waiting processes per node, with libraries already imported; a replacement then starts in a fraction of a "
        "second.",
        ge=0,
    )
    spare_device_memory_bytes: Bytes = make_field(
        Scope.JOB,
        1 << 30,
        'a whole number of bytes >= 0, or a size such as "512MiB"',
        "What a waiting spare may take of the memory of each GPU that it may get, to be a second faster: a context, "
        "first kernels, NCCL. A GPU must have twice as much to spare. 0: spares take nothing.",
        ge=0,
    )
    persist: PersistConfig = make_field(
        Scope.JOB,
        PersistConfig(),
        'an object {"directory": ..., "period": ...}',
        "Checkpoints on disk, for losses that no copy in memory survives.",
    )
    persist_dir: str = make_field(
        Scope.LAUNCH,
        "",
        "an absolute path, or empty for none",
        "Folder on a file system that all nodes share. Versions of the job are written there while it trains, and the "
        "same command goes on from the newest one.",
    )
    persist_interval_s: float = make_field(
        Scope.JOB,
        600.0,
        "seconds >= 0",
        "Time between two versions in persist_dir. 0: one is written only before the job ends because ranks have no "
        "place.",
        ge=0,
    )
    persist_keep: int = make_field(
        Scope.JOB, 2, "a whole number >= 1", "Complete versions that stay in persist_dir; older ones are removed.", ge=1
    )
    secret: str = make_field(
        Scope.LAUNCH,
        "",
        "at least 16 characters, or empty",
        "Shared secret of the job's connections, which begin before the script does; empty: generated for each job. "
        "Several nodes that are started by hand need the same one.",
        repr=False,
    )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str = BLOCK) -> FailoverConfig:
        """The configuration in `fields` (the contents of an "ff_failover" block).

        source: what to call the block's origin in messages, e.g. "ds.json". Raises ConfigError, listing every mistake.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError(f'{source}: "{BLOCK}" = {fields!r}: allowed: an object such as {{"enabled": true}}')
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None

    def updated(self, fields: Mapping[str, Any], source: str = "command line") -> FailoverConfig:
        """A copy in which `fields` win over this configuration's values. Raises ConfigError."""
        return self.from_dict({**self.to_dict(), **fields}, source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back. Holds the secret: do not print it."""
        return self.model_dump()

    @field_validator("interval")
    @classmethod
    def _positive_interval(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("not positive")
        return value

    @field_validator("hang_timeout_s")
    @classmethod
    def _positive_hang_timeout(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value <= 0:
            raise ValueError("not positive")
        return value

    @field_validator("tcp_streams")
    @classmethod
    def _few_streams(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= MAX_TCP_STREAMS:
            raise ValueError("out of range")
        return value

    @field_validator("persist_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("not absolute")
        return value

    @field_validator("secret")
    @classmethod
    def _long_secret(cls, value: str) -> str:
        if value and len(value) < 16:
            raise ValueError(f"it has {len(value)}")
        return value

    @model_validator(mode="after")
    def _relations(self) -> FailoverConfig:
        problems = []
        if self.heartbeat_interval_s * 2 > self.heartbeat_timeout_s:
            problems.append(
                f"heartbeat_interval_s = {self.heartbeat_interval_s} and heartbeat_timeout_s = "
                f"{self.heartbeat_timeout_s}: the timeout must be at least two intervals, or one late sign of life "
                "is taken for a lost node"
            )
        if self.verdict_timeout_s <= self.heartbeat_timeout_s:
            problems.append(
                f"verdict_timeout_s = {self.verdict_timeout_s} and heartbeat_timeout_s = {self.heartbeat_timeout_s}: "
                "the verdict timeout must be longer, or collectives give up before a lost node is noticed"
            )
        if isinstance(self.hang_timeout_s, float) and self.hang_timeout_s < 2 * self.heartbeat_interval_s:
            problems.append(
                f"hang_timeout_s = {self.hang_timeout_s} and heartbeat_interval_s = {self.heartbeat_interval_s}: "
                "progress is seen once per heartbeat, so the hang timeout must be at least two intervals"
            )
        if self.persist_dir and not self.checksum:
            problems.append(
                f"persist_dir = {self.persist_dir!r} and checksum = False: what is read back from a disk needs "
                "checksums; allowed: persist_dir with checksum = true"
            )
        if 0 < self.memory_limit_bytes < 2 * self.chunk_bytes:
            problems.append(
                f"memory_limit_bytes = {self.memory_limit_bytes} and chunk_bytes = {self.chunk_bytes}: "
                "a rank needs two slots of at least one chunk; raise the limit, or use 0 for what the machine has"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
