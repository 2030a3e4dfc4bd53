"""The results of the recovery benchmark for people: name, median, spread, and what was aimed for."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ff_core.units import format_bytes

#: key -> (words, what is aimed for at the median or None); seconds.
ROWS: dict[str, tuple[str, float | None]] = {
    "kill_to_step_s": ("SIGKILL to every rank done with the interrupted iteration, spare ready", 0.5),
    "beyond_iteration_s": ("the same beyond one median iteration", 0.3),
    "kill_to_step_no_spare_s": ("the same without a spare", 5.0),
    "baseline_restart_s": ("torchrun restart + load_checkpoint: to the next iteration", None),
    "baseline_regain_s": ("torchrun restart + load_checkpoint: to the interrupted iteration", None),
    "iteration_with_s": ("iteration, with a version copied", None),
    "iteration_without_s": ("iteration, without", None),
    "iteration_plain_s": ("iteration under plain torchrun", None),
}
_LOST_MS = 10.0


def print_results(results: dict[str, Any], console: Console) -> None:
    """Everything that was measured; what was not is left out."""
    console.print(_measured_on(results), highlight=False, soft_wrap=True)
    table = Table(title="seconds", title_justify="left")
    for name in ("what", "median", "lowest", "highest", "n", "aim"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    for key, (words, aim) in ROWS.items():
        numbers = results.get(key)
        if numbers is None:
            continue
        met = "" if aim is None or numbers["median"] <= aim else " missed"
        table.add_row(
            words, *(f"{numbers[name]:.3f}" for name in ("median", "low", "high")), str(numbers["n"]),
            "" if aim is None else f"{aim:g}{met}",
        )  # fmt: skip
    console.print(table)
    for line in _sentences(results):
        console.print(line, highlight=False, soft_wrap=True)


def _measured_on(results: dict[str, Any]) -> str:
    where = results["machine"]
    loads = ", ".join(f"{name} {low:.1f} to {high:.1f}" for name, (low, high) in results["load"].items())
    return f"{where['date']}, {where['processor']}, {where['cores']} cores; load before and after: {loads}"


def _sentences(results: dict[str, Any]) -> list[str]:
    lines = []
    if results.get("phases"):
        phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in results["phases"].items())
        lines.append(f"phases of a failover, medians in seconds: {phases}")
    if results.get("ratio") is not None:
        lines.append(f"a restart takes {results['ratio']:.1f} times as long as a failover to a spare")
    if results.get("lost_ms_20m") is not None:
        version = format_bytes(results["bytes_per_version"])
        lines.append(
            f"replicating {version} per rank and iteration stops the training for "
            f"{results['lost_ms_20m']:.2f} ms (mean; aim: {_LOST_MS:g}) and takes "
            f"{results['cpu_s_per_version']:.4f} CPU seconds; an iteration with a "
            f"copy differs by {results['copy_cost_s']['median']:+.4f} s from its neighbour without (median of pairs)"
        )
    if results.get("leak") is not None:
        leak = results["leak"]
        what = "as after two (5 %)" if leak["within_5_percent"] else "; ".join(leak["grown"])
        lines.append(f"survivors and supervisors after {leak['failovers']} failovers: {what}")
    if results.get("bit_exact") is not None:
        lines.append(f"bit-exact: {'yes' if results['bit_exact'] else 'no'}")
    return lines
