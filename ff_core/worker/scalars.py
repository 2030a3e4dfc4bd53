"""A version's scalars: everything of a rank's state that is not a copied tensor, encoded as one blob."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ff_core.state import codec, registered, rng, switched, variables

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_core.contract.adapter import TrainerAdapter


def take(adapter: TrainerAdapter, registry: GroupRegistry) -> codec.Encoding:
    """Those of the live version. What lies on a device may still be on its way: nothing waits for the device."""
    return codec.begin(
        {
            "adapter": adapter.scalars(),
            "registered": registered.collect(),
            "switched": switched.collect(),
            "variables": variables.of_process.save(),
            "rng": rng.capture(),
            "late_groups": registry.late_groups(),
        },
        name="scalars",
    )


def decode(blob: bytes | memoryview) -> dict[str, Any]:
    """Names as in `take`."""
    scalars: dict[str, Any] = codec.decode(blob)
    return scalars


def load(adapter: TrainerAdapter, scalars: dict[str, Any]) -> None:
    """Put decoded scalars back, but for the groups."""
    adapter.load_scalars(scalars["adapter"])
    registered.load(scalars["registered"])
    switched.load(scalars["switched"])
    rng.restore(scalars["rng"])  # last: loading may draw numbers
