"""`python -m ff_core.config.table` prints the documentation of every field as a Markdown table."""

from __future__ import annotations

from pydantic import BaseModel

from ff_core.config.fields import allowed_of, inner_model, scope_of
from ff_core.config.schema import FailoverConfig


def reference_table() -> str:
    """The documentation of every field as a Markdown table."""
    rows = ["| field | default | scope | allowed | meaning |", "| --- | --- | --- | --- | --- |"]

    def add(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            inner = inner_model(info)
            if inner is not None:
                add(inner, f"{prefix}{name}.")
                continue
            default = {True: "true", False: "false"}.get(info.default) if isinstance(info.default, bool) else None
            default = default or (f'"{info.default}"' if isinstance(info.default, str) else str(info.default))
            cells = (f"`{prefix}{name}`", f"`{default}`", scope_of(info).value, allowed_of(info), info.description)
            rows.append(f"| {' | '.join(map(str, cells))} |")

    add(FailoverConfig, "")
    return "\n".join(rows)


if __name__ == "__main__":
    print(reference_table())
