"""FailoverConfig: the one schema behind DeepSpeed's "ff_failover" block, Megatron's flags and the launcher.

Every field has a unit in its name and a default that needs no thought. Values are immutable once made; a wrong key,
type, range or combination is a `ConfigError` that names the field, the value and what is allowed.
`python -m ff_core.config.schema` prints the reference table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from ff_core.errors import ConfigError
from ff_core.units import parse_bytes, parse_rate

BLOCK = "ff_failover"
MAX_TCP_STREAMS = 16
_PAGE = 4096


def _bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _rate(value: Any) -> Any:
    return parse_rate(value) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
BytesPerSecond = Annotated[int, BeforeValidator(_rate)]


def _field(default: Any, allowed: str, description: str, **limits: Any) -> Any:
    """A field whose `allowed` text appears in error messages and in the reference table."""
    return Field(default, description=description, json_schema_extra={"allowed": allowed}, **limits)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class PersistConfig(_Strict):
    """Checkpoints on disk, as a second line of defence. Both fields or neither."""

    directory: str = _field("", "a path, or empty for none", "Where checkpoints are saved.")
    period: int = _field(0, "a whole number >= 0", "Iterations between checkpoints; 0: none are saved.", ge=0)

    @model_validator(mode="after")
    def _both_or_neither(self) -> PersistConfig:
        if bool(self.directory) != bool(self.period):
            raise ValueError(
                f"directory = {self.directory!r} and period = {self.period}: give both, or neither for no checkpoints"
            )
        return self


class FailoverConfig(_Strict):
    """How a job is protected. Made by `FailoverConfig.from_dict`, which explains what is wrong with a bad block."""

    enabled: bool = _field(False, "true or false", "Protect the job. Off: training runs as without this package.")
    replicas: int = _field(
        1,
        "a whole number >= 0",
        "Copies of each rank's unique state in the memory of other failure domains. 0 protects against the death of a "
        "process only.",
        ge=0,
    )
    interval: int = _field(
        1,
        "a whole number >= 1",
        "Iterations from one copied version to the next, for the whole job. A failure loses at most this many "
        "iterations, and the one that was running.",
        ge=1,
    )
    commit: Literal["strict", "relaxed"] = _field(
        "strict",
        '"strict" or "relaxed"',
        "strict: an optimizer step begins only when the newest scheduled version is safe everywhere. relaxed: it may "
        "run ahead while there are free slots.",
    )
    memory_limit_bytes: Bytes = _field(
        0,
        'a whole number of bytes >= 0, or a size such as "64GiB"',
        "Host memory per node for slots and replicas; 0: what machine and cgroup have.",
        ge=0,
    )
    chunk_bytes: Bytes = _field(
        1 << 20,
        'a multiple of 4096 from 4096 to 1 GiB, or a size such as "1MiB"',
        "Unit in which state is copied, checksummed and sent.",
        ge=_PAGE,
        le=1 << 30,
        multiple_of=_PAGE,
    )
    bandwidth_limit_bytes_per_s: BytesPerSecond = _field(
        0,
        'a whole number >= 0, or a rate such as "500MiB/s" or "10Gbit/s"',
        "Most bytes per second that a rank sends to one replica; 0: unlimited.",
        ge=0,
    )
    transport: Literal["auto", "shm", "tcp", "ucx"] = _field(
        "auto",
        '"auto", "shm", "tcp" or "ucx"',
        "How replicas travel. shm: shared memory, to nodes of the same host only. ucx: through libucx 1.13 or newer, "
        "which every node must have; for RDMA. auto: shm to real nodes of the same host, tcp to others and to emulated "
        "ones.",
    )
    tcp_streams: int | Literal["auto"] = _field(
        "auto",
        'a whole number from 1 to 16, or "auto"',
        "TCP connections side by side from a rank to one replica, where replicas travel by tcp. auto: about 8 for all "
        "ranks of a node together, at most 4 each; 1 within a host.",
    )
    pacing: bool = _field(
        False,
        "true or false",
        "Send a version evenly until the next optimizer step is expected, and not while collectives run; false: at "
        "once.",
    )
    checksum: bool = _field(
        True,
        "true or false",
        "CRC32C over everything copied. Off is for measurements only: a damaged copy would then be loaded.",
    )
    heartbeat_interval_s: float = _field(0.5, "seconds > 0", "Time between two signs of life of a node.", gt=0)
    heartbeat_timeout_s: float = _field(
        5.0,
        "seconds > 0",
        "A node silent for this long is lost. (A process that dies is noticed at once.)",
        gt=0,
    )
    hang_timeout_s: float | Literal["auto"] = _field(
        "auto",
        'seconds > 0, or "auto"',
        "A rank that makes no progress for this long is declared dead. auto: calibrated from the job's own iteration "
        "times.",
    )
    halt_timeout_s: float = _field(
        10.0,
        "seconds > 0",
        "A surviving process that does not confirm within this time that it has halted is killed and replaced.",
        gt=0,
    )
    verdict_timeout_s: float = _field(
        30.0,
        "seconds > 0",
        "A collective that failed although no failure is known waits this long for one; then its own exception is "
        "raised.",
        gt=0,
    )
    join_timeout_s: float = _field(
        600.0, "seconds > 0", "Time a replacement has from its start until it is ready to train.", gt=0
    )
    regroup_timeout_s: float = _field(
        60.0, "seconds > 0", "Time for all ranks to connect anew; then recovery starts over.", gt=0
    )
    spares: int = _field(
        0,
        "a whole number >= 0",
        "Waiting processes per node, with libraries already imported; a replacement then starts in a fraction of a "
        "second.",
        ge=0,
    )
    persist: PersistConfig = _field(
        PersistConfig(),
        'an object {"directory": ..., "period": ...}',
        "Checkpoints on disk, for losses that no copy in memory survives.",
    )
    secret: str = _field(
        "",
        "at least 16 characters, or empty",
        "Shared secret of the job's connections; empty: generated for each job. Several nodes that are started by "
        "hand need the same one.",
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
            raise ConfigError(_explain(error, source)) from None

    def updated(self, fields: Mapping[str, Any], source: str = "command line") -> FailoverConfig:
        """A copy in which `fields` win over this configuration's values. Raises ConfigError."""
        return self.from_dict({**self.to_dict(), **fields}, source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back. Holds the secret: do not print it."""
        return self.model_dump()

    @field_validator("interval", mode="before")
    @classmethod
    def _no_auto_interval(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("choosing the interval from a measured overhead is not available yet")
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
        if 0 < self.memory_limit_bytes < 2 * self.chunk_bytes:
            problems.append(
                f"memory_limit_bytes = {self.memory_limit_bytes} and chunk_bytes = {self.chunk_bytes}: "
                "a rank needs two slots of at least one chunk; raise the limit, or use 0 for what the machine has"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _explain(error: ValidationError, source: str) -> str:
    """One line per mistake: origin, field, value, what is allowed."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        path, info, model = _locate(item["loc"])
        reason = str(item["ctx"]["error"]) if item["type"] == "value_error" else ""
        name = ".".join((BLOCK, *path))
        if item["type"] in ("extra_forbidden", "invalid_key"):
            key = str(item["loc"][-1])
            shown = f".{key}" if key.isidentifier() else f"[{key!r}]"
            line = f"{name}{shown} = {item['input']!r}: no such field{_nearest(key, model)}"
        elif info is None or (reason and item["loc"] == ("persist",)):
            # A relation between fields; the validator's text names them with their values.
            lines += [f"{source}: {name}: {line}" for line in reason.splitlines()]
            continue
        else:
            value = "(not shown)" if path == ("secret",) else repr(item["input"])
            allowed = (info.json_schema_extra or {}).get("allowed")  # type: ignore[union-attr]
            line = f"{name} = {value}: allowed: {allowed}" + (f" ({reason})" if reason else "")
        if f"{source}: {line}" not in lines:  # a union reports one mistake per member
            lines.append(f"{source}: {line}")
    return "\n".join(lines)


def _locate(loc: tuple[int | str, ...]) -> tuple[tuple[str, ...], FieldInfo | None, type[BaseModel]]:
    """The part of an error's location that is fields of ours, the last field on it, and the model the path ended in."""
    path: tuple[str, ...] = ()
    model: type[BaseModel] = FailoverConfig
    info: FieldInfo | None = None
    for part in loc:
        found = model.model_fields.get(str(part))
        if found is None:
            break
        path, info = (*path, str(part)), found
        if isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel):
            model = found.annotation
    return path, info, model


def _nearest(key: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(known)}"


def reference_table() -> str:
    """The documentation of every field as a Markdown table."""
    rows = ["| field | default | allowed | meaning |", "| --- | --- | --- | --- |"]

    def add(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                add(info.annotation, f"{prefix}{name}.")
                continue
            allowed = (info.json_schema_extra or {}).get("allowed")  # type: ignore[union-attr]
            default = {True: "true", False: "false"}.get(info.default) if isinstance(info.default, bool) else None
            default = default or (f'"{info.default}"' if isinstance(info.default, str) else str(info.default))
            rows.append(f"| `{prefix}{name}` | `{default}` | {allowed} | {info.description} |")

    add(FailoverConfig, "")
    return "\n".join(rows)


if __name__ == "__main__":
    print(reference_table())
