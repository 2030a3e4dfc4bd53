"""The whole surface of `dist.ProcessGroup`: every method of it is forwarded, inherited or refused, none forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ff_core.errors import UnsupportedError

from . import compat

"""Methods and attributes that the C++ base answers rightly by itself: identity, names, and conversions."""
INHERITED = frozenset(
    {"BackendType", "_backend_id", "_id", "_set_group_desc", "_set_group_name", "bound_device_id"}
    | {"boxed", "group_desc", "group_name", "rank", "size", "unbox"}
    | {"use_pg_for_symm_mem_rendezvous", "_set_default_backend", "_register_backend", "_pybind11_conduit_v1_"}
)


def _operation(name: str) -> Callable[..., Any]:
    def operation(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(name, args, kwargs)

    operation.__name__ = name
    operation.__doc__ = f"`dist.ProcessGroup.{name}` on the current generation; the handle ends with it."
    return operation


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            f"ProcessGroup.{name} cannot be used on a group that survives failures; "
            "disable failover for this job, or create that group without it"
        )

    refuse.__name__ = name
    return refuse


def complete(cls: type) -> None:
    """Gives `cls` every method of `dist.ProcessGroup` that it does not define and must not inherit.

    Collectives call `cls._run(name, args, kwargs)`. What a newer torch adds is refused until it is classified here.
    """
    for name in dir(dist.ProcessGroup):
        if name in compat.WORK_OPS:
            setattr(cls, name, _operation(name))
        elif name not in INHERITED and name not in vars(cls) and not (name.startswith("__") and name.endswith("__")):
            setattr(cls, name, _refusal(name))
