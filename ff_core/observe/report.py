"""`fftrain report OUT_DIR`: what happened in a job, as a table in the terminal and as one HTML page.

The page goes to OUT_DIR/report.html and the numbers to OUT_DIR/report.json, or where --html and --json say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ff_core.errors import FailoverError
from ff_core.observe.events import PHASES
from ff_core.observe.html import render
from ff_core.observe.story import Story, load_story
from ff_core.units import format_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """The sub-command. Returns 0, or 2 with a message when OUT_DIR holds no job."""
    parser = argparse.ArgumentParser(prog="fftrain report", description="Show what happened in a job.")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="what --out-dir of `fftrain run` was")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: OUT_DIR/report.html)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where numbers go (default: OUT_DIR/report.json)")
    arguments = parser.parse_args(argv)
    try:
        story = load_story(arguments.out_dir)
        print_report(story)
        page, numbers = write_report(story, arguments.out_dir, arguments.html, arguments.json)
    except FailoverError as error:
        print(f"fftrain report: error: {error}", file=sys.stderr)
        return 2
    print(f"page: {page}\nnumbers: {numbers}")
    return 0


def write_report(
    story: Story, out_dir: Path, html: Path | None = None, numbers: Path | None = None
) -> tuple[Path, Path]:
    """Write page and numbers; returns their paths. Raises FailoverError naming a path that cannot be written."""
    html, numbers = html or out_dir / "report.html", numbers or out_dir / "report.json"
    contents = {html: render(story, out_dir.name), numbers: json.dumps(story.to_dict(), indent=2) + "\n"}
    for path, text in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise FailoverError(f"{path} cannot be written: {error.strerror}") from error
    return html, numbers


def print_report(story: Story, console: Console | None = None) -> None:
    """The story as text: how the job ended, and a row per failover with its phases in seconds."""
    # Piped into a file the table must not be cut to the 80 columns that rich assumes.
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    end = {None: "still running", 0: "ended well"}.get(story.code, f"ended with exit code {story.code}")
    console.print(
        f"{story.world_size} ranks on {story.nodes} nodes, {story.end - story.start:.1f} s, {end}; "
        f"version {story.last_version} safe on every rank, {story.restarts} restarts; {story.coverage}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
    if story.recoveries:
        console.print(recovery_table(story))
    else:
        console.print("no failover", highlight=False)
    for line in interval_lines(story):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if story.stats:
        console.print(cost_table(story))


def interval_lines(story: Story) -> list[str]:
    """Which versions were copied, why, and what a death may cost: a line per choice."""
    lines = []
    for chosen in story.intervals:
        lost = chosen["most_lost"]
        lines.append(
            f"from version {chosen['version']} on, interval {chosen['interval']}: {chosen['why']}; a death costs at "
            f"most {lost} finished iteration{'' if lost == 1 else 's'} and the one that runs"
        )
    return lines


def cost_table(story: Story) -> Table:
    """A row per rank: what its training stood still for a copied version, in milliseconds and of the iterations."""
    table = Table(title="what a copied version costs (ms)", title_justify="left")
    columns = (
        "rank",
        "measured",
        "iteration",
        "lost: mean",
        "median",
        "p99",
        "thread",
        "device",
        "slowed",
        "of it",
        "of all",
    )
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for rank in sorted(story.stats):
        get = story.stats[rank].get
        lost = ("lost_ms_mean", "lost_ms_median", "lost_ms_p99")
        times = ("iteration_ms", *lost, "thread_ms_mean", "device_ms_mean", "slowed_ms_mean")
        table.add_row(
            str(rank),
            str(get("copies_measured", 0)),
            *(f"{get(name, 0.0):.2f}" for name in times),
            *(f"{get(name, 0.0):.2%}" for name in ("lost_share_copying", "lost_share")),
        )
    table.caption = (
        "lost: the training stood still. thread, device: means. slowed: iterations took longer, mean. of it: of an "
        "iteration that copies, of all: iterations, both without what is slowed"
    )
    return table


def recovery_table(story: Story) -> Table:
    """A row per failover: who died, the version continued from, seconds per phase and in total, bytes restored."""
    table = Table(title="failovers (seconds)", title_justify="left")
    for name in ("epoch", "dead", "from", *PHASES, "total", "restored", "spare"):
        table.add_column(name, justify="left" if name == "spare" else "right", no_wrap=True)
    for r in story.recoveries:
        table.add_row(
            str(r.epoch),
            ",".join(map(str, r.dead)),
            str(r.v_star),
            *(f"{duration:.3f}" for duration in r.phases.values()),
            f"{r.total_s:.3f}",
            format_bytes(r.bytes["restored"]) if "restored" in r.bytes else "",
            r.spare,
        )
    return table
