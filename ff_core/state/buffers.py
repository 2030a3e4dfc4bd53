"""Module buffers: which of them forward changes, and how all of them come back.

A buffer that forward changes (BatchNorm's running statistics, caches) differs from rank to rank and is saved with the
scalars of every version. The others stay what they were at the start. A survivor keeps a copy of them, to undo a first
change in an iteration that did not count. A newcomer keeps its own where a checksum says that it is right; otherwise it
takes its peers'.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from ff_core.errors import FailoverError
from ff_core.state.members import Members


class Buffers:
    """All buffers of one model. `changing`: names of those saved with every version; it only grows."""

    def __init__(self, members: Members) -> None:
        self._members, self._module = members, members.model
        self.changing = {
            f"{prefix}.{name}" if prefix else name
            for prefix, child in self._module.named_modules()
            if isinstance(child, _NormBase) and child.track_running_stats
            for name, _ in child.named_buffers(recurse=False)
        }
        self._seen: dict[str, tuple[int, int]] = {}  # name -> (identity, version counter) at the start
        self._start: dict[str, torch.Tensor] = {}
        self._checksums: dict[str, int] = {}

    def begin(self) -> None:
        """Training starts: what the buffers hold now is what they held at the start."""
        for name, buffer in self._members.look().buffers.items():
            if name not in self.changing:
                self._seen[name] = _mark(buffer)
                self._start[name] = buffer.detach().clone()
                self._checksums[name] = _checksum(buffer)

    def save(self) -> dict[str, Any]:
        """{"changing": name -> live tensor, to be encoded at once; "constant": name -> CRC32 of its bytes at first}.

        Whoever calls this has looked at the members.
        """
        live = self._members.buffers
        for name, buffer in live.items():
            if name not in self.changing and self._seen.get(name) != _mark(buffer):
                self.changing.add(name)
        return {
            "changing": {name: live[name].detach() for name in sorted(self.changing & live.keys())},
            "constant": {name: crc for name, crc in self._checksums.items() if name not in self.changing},
        }

    def copy(self) -> dict[str, torch.Tensor]:
        """name -> copy, of those that change."""
        self._members.look()
        return {name: tensor.clone() for name, tensor in self.save()["changing"].items()}

    def put(self, values: dict[str, torch.Tensor]) -> None:
        """Put `copy()` back, in the same process."""
        live = dict(self._module.named_buffers())
        for name, value in values.items():
            self._put(name, live.get(name), value)

    def load(self, saved: dict[str, Any], from_peers: dict[str, torch.Tensor]) -> None:
        """Put `save()` back.

        from_peers: in a newcomer, name -> what survivors hold of the constant buffers; else empty. Raises
        FailoverError if a constant buffer is neither here nor there what it was when this rank saved.
        """
        live = dict(self._module.named_buffers())
        for name, value in saved["changing"].items():
            self._put(name, live.get(name), value)
        for name, crc in saved["constant"].items():
            # First this process's own, then the peers': a buffer may hold something of this rank alone.
            for value in (self._start.get(name), live.get(name), from_peers.get(name)):
                if value is not None and _checksum(value) == crc:
                    break
            else:
                raise FailoverError(
                    f"buffer {name!r} of the replacement is not what the dead rank started with, and no peer has it: "
                    "fill it in the same way on every start of the script, or from the same seed"
                )
            self._put(name, live.get(name), value)
            self._start[name], self._checksums[name] = value.detach().clone(), crc
            self._seen[name] = _mark(dict(self._module.named_buffers())[name])
        for name in live.keys() - saved["changing"].keys() - saved["constant"].keys():
            # Made by an iteration that did not count.
            owner, _, leaf = name.rpartition(".")
            del self._module.get_submodule(owner)._buffers[leaf]
        self.changing = set(saved["changing"])

    def _put(self, name: str, live: torch.Tensor | None, value: torch.Tensor) -> None:
        if live is not None and live.shape == value.shape and live.dtype == value.dtype:
            with torch.no_grad():
                live.copy_(value)
            return
        owner, _, leaf = name.rpartition(".")
        device = live.device if live is not None else next(iter(self._module.parameters())).device
        self._module.get_submodule(owner)._buffers[leaf] = value.to(device, copy=True)


def _mark(buffer: torch.Tensor) -> tuple[int, int]:
    # Tensors made under inference_mode count no versions: their identity has to do.
    return id(buffer), -1 if buffer.is_inference() else buffer._version


def _checksum(buffer: torch.Tensor) -> int:
    plain = buffer.detach().cpu().contiguous()
    return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().tobytes()) if plain.numel() else 0
