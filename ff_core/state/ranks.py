"""Ranks in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def listed(ranks: Iterable[int], newcomers: Collection[int] = ()) -> str:
    """ "rank 3 (a replacement)", "ranks 0, 1, 2, 4 and 12 more"."""
    shown = sorted(ranks)
    some = ", ".join(f"{rank} (a replacement)" if rank in newcomers else str(rank) for rank in shown[:4])
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return f"rank{'s' if len(shown) > 1 else ''} {some}{more}"


def by_value(values: Mapping[int, str], newcomers: Collection[int] = ()) -> str:
    """rank -> value as "0.1 on rank 3 (a replacement) and 0.5 on ranks 0, 1, 2"; the rarest value first."""
    holders: dict[str, list[int]] = {}
    for rank, value in values.items():
        holders.setdefault(value, []).append(rank)
    rarest = sorted(holders, key=lambda value: (len(holders[value]), -max(holders[value])))
    return " and ".join(f"{value} on {listed(holders[value], newcomers)}" for value in rarest)
