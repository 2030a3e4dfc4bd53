"""What a field of the schema is made of: its type with units, what it allows, and its scope."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from ff_core.units import parse_bytes, parse_rate

#: The key under which a DeepSpeed configuration has our fields.
BLOCK = "ff_failover"


class Scope(Enum):
    """When a field must be known. LAUNCH: when processes start. JOB: when training starts, so it may come with a
    configuration that the script builds itself."""

    LAUNCH = "launch"
    JOB = "job"


def _bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _rate(value: Any) -> Any:
    return parse_rate(value) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
BytesPerSecond = Annotated[int, BeforeValidator(_rate)]


class Strict(BaseModel):
    """A model that converts nothing, allows no unknown fields, and cannot be changed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def make_field(scope: Scope, default: Any, allowed: str, description: str, **limits: Any) -> Any:
    """A field of the schema. Its `allowed` text appears in error messages and in the reference table."""
    return Field(
        default, description=description, json_schema_extra={"allowed": allowed, "scope": scope.value}, **limits
    )


def allowed_of(info: FieldInfo) -> str:
    """What a field allows, in words."""
    return str(_extra(info)["allowed"])


def scope_of(info: FieldInfo) -> Scope:
    """When a field must be known."""
    return Scope(_extra(info)["scope"])


def inner_model(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is an object with fields of its own, else None."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _extra(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    assert isinstance(extra, dict), "a field that make_field has not made"
    return extra
