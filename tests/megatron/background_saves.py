"""megatron-core's background saves in tests; imported by the script, and by the process that writes.

Without a GPU what goes to the writer is copied. With one the writer has copied it before the training goes on; tensors
of the CPU would move into shared memory and be written to by both.

--hold-save ITERATION RANK...: the first time that these ranks' writers write that iteration, they stop at its first
byte for ever. --die-finalizing RANK: it dies when it first waits for saves that are under way.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available() or "cuda_on_cpu" in sys.modules:
    import cuda_on_cpu  # noqa: F401

from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

_theirs = PersistentAsyncCaller.async_loop


def async_loop(*args: Any) -> None:
    """What the writer process runs. It is looked up in this module, which it therefore imports."""
    _theirs(*args)


PersistentAsyncCaller.async_loop = staticmethod(async_loop)


def extra_args(parser: Any) -> Any:
    parser.add_argument("--hold-save", nargs="+", type=int)
    parser.add_argument("--die-finalizing", type=int)
    return parser


def _words(option: str) -> list[str]:
    if option not in sys.argv:
        return []
    rest = sys.argv[sys.argv.index(option) + 1 :]
    return rest[: next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))]


def _once(name: str) -> bool:
    """Whether nobody has asked for `name` before, in any process of the job."""
    mark = Path(_words("--result")[0]).with_name(name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _prepare(original: Any) -> Any:
    def prepare_write_data(self: Any, plan: Any, planner: Any) -> None:
        original(self, plan, planner)
        self.write_buckets = [
            (path, key, (data, [(item, tensor.clone()) for item, tensor in tensors]))
            for path, key, (data, tensors) in self.write_buckets
        ]

    return prepare_write_data


def _held(original: Any) -> Any:
    iteration, *ranks = map(int, _words("--hold-save"))

    def write_preloaded_data(*args: Any, **kwargs: Any) -> Any:
        path = Path(kwargs["write_bucket"][0])
        rank = int(path.name.strip("_").partition("_")[0])
        if path.parent.name == f"iter_{iteration:07d}" and rank in ranks and _once(f"held.rank{rank}"):
            while True:
                time.sleep(1)
        return original(*args, **kwargs)

    return staticmethod(write_preloaded_data)


def die_finalizing(training: Any) -> None:
    """Have the rank of --die-finalizing die. training: the module megatron.training.training."""
    original = training.maybe_finalize_async_save

    def finalize(blocking: bool = False, terminate: bool = False) -> None:
        from megatron.training import async_utils

        args = training.get_args()
        waits = blocking and not async_utils.is_empty_async_queue()
        if waits and args.rank == args.die_finalizing and _once("died-finalizing"):
            time.sleep(0.5)  # the others wait too
            os.kill(os.getpid(), signal.SIGKILL)
        original(blocking=blocking, terminate=terminate)

    training.maybe_finalize_async_save = finalize


if "torch_dist" in sys.argv:  # padding between parameters is written as it lies in memory: have it filled
    torch.use_deterministic_algorithms(True, warn_only=True)
if "cuda_on_cpu" in sys.modules:
    FileSystemWriterAsync.prepare_write_data = _prepare(FileSystemWriterAsync.prepare_write_data)
if "--hold-save" in sys.argv:
    FileSystemWriterAsync.write_preloaded_data = _held(FileSystemWriterAsync.write_preloaded_data)
