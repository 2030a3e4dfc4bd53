"""The modules, parameters and buffers of a model: listed once, and listed anew when the model changes.

torch walks the whole model whenever it is asked for its parameters, which takes half a millisecond for three hundred of
them. Several parts ask in each iteration, so the lists are kept. Three things show that they may be stale:

* torch says so: a module, a parameter or a buffer was set somewhere in this process (torch's registration hooks);
* there are more or fewer entries in the modules' dictionaries: something was deleted, or put there behind torch's back;
* entries are others than before. Where a version ends the parameters are looked at (torch does not say `layer.bias =
  None`), and at every 16th version everything.

So nearly every change is seen at the next `look()`. A parameter that was set to None, or exchanged behind torch's back
(`module._parameters["weight"] = other`), is seen at the end of the version. A module or a buffer that was exchanged
behind torch's back is seen at the latest 16 versions later.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch.nn.modules import module as torchs

_EVERY = 16
_DICTIONARIES = attrgetter("_modules", "_parameters", "_buffers")


class _Registrations:
    """How often modules, parameters and buffers were set in this process. Buffers apart: forward may set some."""

    def __init__(self) -> None:
        self.watched = False
        self.structure = self.buffers = 0

    def watch(self) -> None:
        """Idempotent."""
        if not self.watched:
            self.watched = True
            torchs.register_module_module_registration_hook(self._structure)
            torchs.register_module_parameter_registration_hook(self._structure)
            torchs.register_module_buffer_registration_hook(self._buffers)

    def _structure(self, *_: Any) -> None:
        self.structure += 1

    def _buffers(self, *_: Any) -> None:
        self.buffers += 1


_registrations = _Registrations()


class Members:
    """Of one model, as of the last look: whoever uses a list has looked, or was called by who has.

    modules: in torch's order, as all of these.  parameters: (name, parameter).  buffers: name -> buffer.
    """

    modules: list[torch.nn.Module]
    parameters: list[tuple[str, torch.nn.Parameter]]
    buffers: dict[str, torch.Tensor]

    def __init__(self, model: torch.nn.Module) -> None:
        _registrations.watch()
        self.model = model
        self._versions = 0
        self._list()

    def look(self) -> Members:
        """Bring the lists up to date."""
        now = _registrations
        if (self._structure_at, self._buffers_at) != (now.structure, now.buffers) or self._count != sum(
            map(len, self._dictionaries)
        ):
            self._list()
        return self

    def version_ends(self) -> Members:
        """look(), once per version, more closely: see the module's words."""
        self._versions += 1
        if self._versions % _EVERY == 0:
            dictionaries, kept = list(chain.from_iterable(map(_DICTIONARIES, self.modules))), self._entries
        else:
            dictionaries, kept = self._with_parameters, self._held
        live = list(chain.from_iterable(map(dict.values, dictionaries)))
        if len(live) != len(kept) or not all(map(is_, live, kept)):
            self._list()
        return self.look()

    def _list(self) -> None:
        # The counts come first: what another thread sets meanwhile is looked for again.
        self._structure_at, self._buffers_at = _registrations.structure, _registrations.buffers
        self.modules = list(self.model.modules())
        self.parameters = list(self.model.named_parameters())
        self.buffers = dict(self.model.named_buffers())
        self._dictionaries = list(chain.from_iterable(map(_DICTIONARIES, self.modules)))
        self._entries = list(chain.from_iterable(map(dict.values, self._dictionaries)))
        self._count = len(self._entries)
        held = [module._parameters for module in self.modules if module._parameters]
        self._with_parameters: list[dict[str, Any]] = list(held)
        self._held = list(chain.from_iterable(map(dict.values, self._with_parameters)))
