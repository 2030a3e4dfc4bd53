"""For processes of tests' jobs: what their start would only spend time on is left out, where TORCHDYNAMO_DISABLE is 1.

Python imports this file when it starts, if the file's folder is in PYTHONPATH (see ENV in tests/e2e/jobs.py).
* torch imports torch._dynamo, almost two seconds of a core, when an optimizer is made or a weight is initialised: only
  to tell the compiler that it shall leave those functions alone. DeepSpeed and megatron-core decorate functions with
  torch.compile. Here these decorators give a function back that does the same without a compiler.
* DeepSpeed asks py-cpuinfo for the processor's name and architecture, up to three times in a process. Each time that
  starts three processes, of which one measures the clock. Here /proc/cpuinfo answers.
* Python looks for garbage again and again while torch is imported, and finds none.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Function = Callable[..., Any]


def as_it_is(function: Function | None = None, *_: Any, **__: Any) -> Function:
    """In place of torch.compile, and of what excepts a function from it; with or without arguments."""
    return as_it_is if function is None else function


def step(function: Function) -> Function:
    """In place of what torch decorates an optimizer's step with: records gradients only if it is differentiable."""

    @functools.wraps(function)
    def stepping(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sys.modules["torch"].set_grad_enabled(self.defaults["differentiable"]):
            return function(self, *args, **kwargs)

    return stepping


def processor() -> dict[str, Any]:
    """In place of cpuinfo.get_cpu_info: what can be known without asking another process."""
    cpuinfo: Any = sys.modules["cpuinfo.cpuinfo"]
    arch, bits = cpuinfo._parse_arch(cpuinfo.DataSource.arch_string_raw)
    return {"arch": arch, "bits": bits, **cpuinfo._get_cpu_info_from_proc_cpuinfo()}


#: module -> a function in it and what takes its place as soon as the module has been executed.
INSTEAD: dict[str, tuple[str, Function]] = {
    "torch": ("compile", as_it_is),
    "torch._compile": ("_disable_dynamo", as_it_is),
    "torch.compiler": ("disable", as_it_is),
    "torch.optim.optimizer": ("_use_grad_for_differentiable", step),
    "cpuinfo.cpuinfo": ("get_cpu_info", processor),
}


class Lean(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in INSTEAD else None
        if spec is not None and spec.loader is not None:
            replace_after(spec.loader, *INSTEAD[name])
        return spec


def replace_after(loader: Loader, name: str, instead: Function) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        collecting = gc.isenabled()
        gc.disable()
        try:
            execute(module)
        finally:
            if collecting:
                gc.enable()
        if not hasattr(module, name):
            raise ImportError(f"{module.__name__}.{name} is gone: tests/e2e/lean stands in for it")
        setattr(module, name, instead)

    loader.exec_module = exec_module  # type: ignore[method-assign]


if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
    sys.meta_path.insert(0, Lean())
