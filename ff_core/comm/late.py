"""Groups created or destroyed after training began, and how every rank agrees on them when an iteration is repeated.

They are not in the init journal. Each rank keeps a plain list of its own, which the runtime seals with every version.
When the job goes back to a version, every rank brings its groups to that version's list:
 * a newcomer creates what it lacks, under the same ids; when its script asks for such a group later, it gets that one;
 * a survivor forgets what it has too much (created in the interrupted iteration) until the script asks for it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed import distributed_c10d as c10d

from ff_core.errors import JournalMismatch

from .group import SwappableGroup

if TYPE_CHECKING:
    from .journal import Journal

"""Arguments of torch's `_new_group_with_tag` that decide which group it is."""
_IDENTITY = ("ranks", "timeout", "backend", "pg_tag", "use_local_synchronization", "group_desc")


class LateGroups:
    """The list of one process: a creation is what `_describe` gives and the id; a destruction is {"destroyed": key}."""

    def __init__(self, journal: Journal, groups: Callable[[], list[SwappableGroup]]) -> None:
        """journal: frozen when training begins.  groups: the living ones of this process."""
        self._journal = journal
        self._living = groups
        self._list: list[dict[str, Any]] = []
        self._groups: list[Any] = []  # parallel to _list; NON_GROUP_MEMBER where we are no member
        self._waiting: list[tuple[dict[str, Any], Any]] = []  # exist already; the script has yet to ask for them

    def items(self) -> list[dict[str, Any]]:
        """What happened since training began, in order. Plain values (str, int, float, bool, None, lists)."""
        return [dict(item) for item in self._list]

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """`original(**arguments)` (torch's `_new_group_with_tag`), or the group that is waiting to be asked for."""
        wanted = _describe(arguments)
        for index, (item, group) in enumerate(self._waiting):
            if "name" in item and all(item.get(name) == value for name, value in wanted.items()):
                del self._waiting[index]
                c10d._world.group_count = max(c10d._world.group_count, item["count_after"])
                if item not in self._list:
                    self._append(item, group)
                return group
        before = c10d._world.group_count
        try:
            group = original(**arguments)
        except BaseException:
            c10d._world.group_count = before  # the repetition must get the same id
            raise
        if self._journal.frozen:
            name = group.group_name if isinstance(group, c10d.ProcessGroup) else None
            item = {**wanted, "name": name, "count_before": before, "count_after": c10d._world.group_count}
            self._append(item, group)
        return group

    def destroyed(self, group: SwappableGroup) -> None:
        """The script destroyed `group`: newcomers must not wait for its members."""
        if self._journal.frozen:
            self._append({"destroyed": group.spec.key}, None)

    def rewind(self, wanted: list[dict[str, Any]], original: Callable[..., Any]) -> None:
        """Brings this process to the list `wanted`. Raises JournalMismatch if the lists do not fit."""
        shared = 0
        while shared < min(len(wanted), len(self._list)) and wanted[shared] == self._list[shared]:
            shared += 1
        if shared < len(self._list) and shared < len(wanted):
            raise JournalMismatch(
                f"group event number {shared} after training began was {self._list[shared]} here and "
                f"{wanted[shared]} in the version to go back to"
            )
        for item, group in zip(self._list[shared:], self._groups[shared:], strict=True):
            if "destroyed" in item:
                continue
            if isinstance(group, SwappableGroup):
                group.deferred = True  # other ranks may not have it (again) yet
            self._waiting.append((item, group))
        created = [item for item in self._list[shared:] if "destroyed" not in item]
        if created:
            c10d._world.group_count = created[0]["count_before"]
        del self._list[shared:], self._groups[shared:]
        for item in wanted[shared:]:
            self._repeat(item, original)

    def _repeat(self, item: dict[str, Any], original: Callable[..., Any]) -> None:
        if "destroyed" in item:
            for group in self._living():
                if group.spec.key == item["destroyed"]:
                    c10d.destroy_process_group(group)  # appends the item by itself
            if item not in self._list:  # we were no member
                self._append(dict(item), None)
            return
        c10d._world.group_count = item["count_before"]
        arguments = {name: item[name] for name in (*_IDENTITY, "sort_ranks") if name in item}
        arguments["timeout"] = None if item["timeout"] is None else timedelta(seconds=item["timeout"])
        with _no_barrier():
            group = original(**arguments)
        name = group.group_name if isinstance(group, c10d.ProcessGroup) else None
        if name != item["name"]:
            raise JournalMismatch(
                f"repeating the creation of group {item['name']!r} (ranks {item['ranks']}) gave the id {name!r}: "
                "this process created other groups before training began than the rank it replaces"
            )
        self._append(dict(item), group)
        self._waiting.append((self._list[-1], group))

    def _append(self, item: dict[str, Any], group: Any) -> None:
        self._list.append(item)
        self._groups.append(group)


@contextlib.contextmanager
def _no_barrier() -> Iterator[None]:
    """torch's barrier after group creation (off by default) is not repeated: the others are long past it."""
    before = os.environ.pop("TORCH_DIST_INIT_BARRIER", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TORCH_DIST_INIT_BARRIER"] = before


def _describe(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one creation as plain values; `timeout` in seconds."""
    plain = {name: arguments.get(name) for name in _IDENTITY}
    ranks, timeout = plain["ranks"], plain["timeout"]
    if ranks is not None and arguments.get("sort_ranks", True):
        plain["ranks"] = sorted(int(rank) for rank in ranks)
    elif ranks is not None:
        plain["ranks"], plain["sort_ranks"] = [int(rank) for rank in ranks], False
    plain["timeout"] = None if timeout is None else timeout.total_seconds()
    plain["backend"] = None if plain["backend"] is None else str(plain["backend"])
    plain["use_local_synchronization"] = bool(plain["use_local_synchronization"])
    return plain
