"""The settings of a job: the value of every field, and where it came from.

The launcher joins what it finds before any process starts. What a script says later, in a configuration that it builds
itself, is joined in its workers. The controller then holds the settings of the job, and agents get them from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ff_core.config.fields import BLOCK, Scope, scope_of
from ff_core.config.schema import FailoverConfig
from ff_core.errors import ConfigError

SPARES_OPTION = "--spares"
#: What a worker calls the block that its script has handed to the framework.
SCRIPT = "the script's configuration"

ALL_FIELDS = frozenset(FailoverConfig.model_fields)
#: Fields that must be known when processes start.
LAUNCH_FIELDS = frozenset(name for name, info in FailoverConfig.model_fields.items() if scope_of(info) is Scope.LAUNCH)


@dataclass(frozen=True, slots=True)
class Settings:
    """config: all fields.  origins: where each field that somebody gave came from; the others have their defaults."""

    config: FailoverConfig = field(default_factory=FailoverConfig)
    origins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def given(cls, config: FailoverConfig, origin: str) -> Settings:
        """What the block `config` gives. A field that it does not have is not given, an empty secret neither."""
        names = config.model_fields_set - (set() if config.secret else {"secret"})
        return cls(config, {name: origin for name in FailoverConfig.model_fields if name in names})

    def joined(self, more: Settings, closed: Collection[str] = ()) -> Settings:
        """These settings and `more`, field by field.

        closed: fields that can no longer change: processes depend on them already. Raises ConfigError, naming field,
        both values and a remedy, for a field that is given twice with different values, or that is closed and would
        change. What the launcher's command line says (--spares) wins.
        """
        values, origins, problems = {}, dict(self.origins), []
        for name, origin in more.origins.items():
            mine, theirs = getattr(self.config, name), getattr(more.config, name)
            if mine == theirs:
                origins.setdefault(name, origin)
            elif self.origins.get(name) == SPARES_OPTION:
                continue
            elif name in closed:
                problems.append(self._too_late(name, theirs, origin))
            elif name in self.origins:
                problems.append(
                    f"{origin}: {BLOCK}.{name} = {_shown(name, theirs)}, but {self._told(name)}; "
                    "allowed: give it in one place, or the same in both"
                )
            else:
                values[name], origins[name] = theirs, origin
        if problems:
            raise ConfigError("\n".join(problems))
        source = " and ".join(dict.fromkeys(origins.values())) or BLOCK
        config = FailoverConfig.from_dict({**self.config.to_dict(), **_plain(values)}, source)
        return Settings(config, origins)

    def replaced_by(self, more: Settings) -> Settings:
        """These settings of a job that goes on, but what `more`, of its new start, gives. Raises ConfigError."""
        given = {name: getattr(more.config, name) for name in more.origins}
        return Settings(self.config.updated(_plain(given)), {**self.origins, **more.origins})

    def with_spares(self, spares: int) -> Settings:
        """The launcher's --spares, which wins over every file and block. Raises ConfigError."""
        config = self.config.updated({"spares": spares}, source=SPARES_OPTION)
        return Settings(config, {**self.origins, "spares": SPARES_OPTION})

    def differences(self, other: Settings) -> list[tuple[str, str, str]]:
        """(field, value and origin here, value and origin in `other`) of every field that differs."""
        return [
            (name, self._value(name), other._value(name))
            for name in FailoverConfig.model_fields
            if getattr(self.config, name) != getattr(other.config, name)
        ]

    def told(self) -> dict[str, tuple[Any, str]]:
        """field -> (value, origin) of what somebody gave and is not the default anyway. Does not show the secret."""
        plain, default = self.config.to_dict(), FailoverConfig()
        return {
            name: ("(not shown)" if name == "secret" else plain[name], origin)
            for name, origin in self.origins.items()
            if name == "secret" or (name != "enabled" and getattr(self.config, name) != getattr(default, name))
        }

    def to_wire(self) -> dict[str, Any]:
        """Plain values, without the secret: that never travels with the settings."""
        return {**self.config.to_dict(), "secret": "", "origins": dict(self.origins)}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any], secret: str = "") -> Settings:
        """What to_wire() gave. secret: of the job, where it is known. Raises ConfigError."""
        values = {name: value for name, value in fields.items() if name != "origins"}
        if secret:
            values["secret"] = secret
        return cls(FailoverConfig.from_dict(values, source="job"), dict(fields.get("origins", {})))

    def _value(self, name: str) -> str:
        return f"{_shown(name, getattr(self.config, name))} ({self.origins.get(name, 'default')})"

    def _told(self, name: str) -> str:
        return f"{self.origins[name]} has {_shown(name, getattr(self.config, name))}"

    def _too_late(self, name: str, value: Any, origin: str) -> str:
        here = f"{origin}: {BLOCK}.{name} = {_shown(name, value)}"
        if name not in LAUNCH_FIELDS:
            return f"{here}, but the job trains with {self._value(name)}: a replacement must run as what it replaces"
        own = name == "secret" and name not in self.origins
        was = "a value of the launcher's own" if own else self._value(name)
        return (
            f"{here}, but the job was started with {was}. Processes need this field before the script runs. "
            f'Give it in time: `fftrain run --ff-config FILE ...`, where FILE has {{"{name}": ...}}; the script may '
            "then say the same, or nothing"
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.model_dump() if hasattr(value, "model_dump") else value for name, value in values.items()}


def _shown(name: str, value: Any) -> str:
    if name == "secret":
        return "(not shown)"
    return repr(value.model_dump() if hasattr(value, "model_dump") else value)
