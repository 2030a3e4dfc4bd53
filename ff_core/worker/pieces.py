"""Which tensors are worked on in pieces while a replacement starts, and how torch's methods come to that.

What for: cores.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch

Method = Callable[..., Any]

#: Elements. A smaller tensor is done sooner than threads are told of it.
SMALLEST = 1 << 18
#: Elements of a piece, at least: a smaller one takes longer to hand over than to work on.
PIECE = 1 << 17
PIECES_OF_A_THREAD = 2


def on_host(tensor: torch.Tensor) -> bool:
    """A large plain tensor in host memory, whose elements lie one behind the other; nothing watches what is done to it.

    Modes of torch and of inference belong to a thread. The threads that take pieces do not have them.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.numel() >= SMALLEST
        and tensor.is_contiguous()
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not tensor.is_inference()
        and not torch.is_inference_mode_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def finish(started: Sequence[Future[None]]) -> None:
    """Returns when all of them are over; raises what one has raised."""
    wait(started)
    for each in started:
        each.result()


@contextmanager
def replaced(ours: Mapping[str, Callable[[Method], Method]]) -> Iterator[None]:
    """Methods of all tensors, by name: each is made from torch's own one.

    Who has wrapped one of them meanwhile keeps the wrapper; ours is torch's own again beneath it.
    """
    active = [True]
    own = {name: name in vars(torch.Tensor) for name in ours}  # others are the base class's
    originals: dict[str, Method] = {name: getattr(torch.Tensor, name) for name in ours}
    methods = {name: _while_active(active, make(originals[name]), originals[name]) for name, make in ours.items()}
    for name, method in methods.items():
        setattr(torch.Tensor, name, method)
    try:
        yield
    finally:
        active.clear()
        for name, method in methods.items():
            if vars(torch.Tensor).get(name) is not method:
                continue
            if own[name]:
                setattr(torch.Tensor, name, originals[name])
            else:
                delattr(torch.Tensor, name)


def _while_active(active: list[bool], ours: Method, original: Method) -> Method:
    @functools.wraps(original)
    def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (ours if active else original)(self, *args, **kwargs)

    return method
