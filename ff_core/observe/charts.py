"""The report's pictures: who played which rank when, progress, losses, and where recovery time went."""

from __future__ import annotations

import math
from collections.abc import Callable

from ff_core.observe.events import PHASES
from ff_core.observe.story import Life, Story
from ff_core.observe.svg import Scale, Svg, thin

WIDTH = 960.0
_LEFT, _RIGHT = 64.0, 30.0
_GRID = "stroke:var(--grid);stroke-width:1"
_MUTED = "fill:var(--muted)"


def timeline(story: Story) -> Svg:
    """A row per rank, a bar per process that played it; a band over all rows where the job recovered."""
    row, top = 26.0, 34.0
    bottom = top + row * max(story.world_size, 1)
    svg = Svg(WIDTH, bottom + 34, "processes that played each rank, over time")
    x = _time_axis(svg, story, top, bottom)
    for rank in range(story.world_size):
        svg.text(_LEFT - 10, top + row * rank + row / 2 + 4, f"rank {rank}", "end")
    for life in story.lives:
        end = story.end if life.end is None else life.end
        y = top + row * life.rank + 4
        colour = "var(--first)" if life.epoch == 0 else "var(--spare)" if life.warm else "var(--cold)"
        svg.rect(x(life.start - story.start), y, x(end - story.start) - x(life.start - story.start), row - 8,
                 f"fill:{colour}", _life_words(life, story), radius=3)  # fmt: skip
    for recovery in story.recoveries:
        begin = recovery.began - story.start
        left, right = x(begin), x(begin + recovery.total_s)
        words = f"epoch {recovery.epoch}: {recovery.cause}; {recovery.total_s:.3f} s, continued from {recovery.v_star}"
        svg.rect(left, top - 6, max(right - left, 1.5), bottom - top + 6, "fill:var(--band);opacity:.45", words)
        for rank in recovery.dead:
            svg.cross(left, top + row * rank + row / 2, 5, "stroke:var(--bad);stroke-width:2.5", f"rank {rank} died")
    _epoch_labels(svg, [(x(r.began - story.start), r.epoch) for r in story.recoveries], top - 12)
    return svg


def progress(story: Story) -> Svg:
    """The newest version safe on every rank, over time."""
    points = [(t - story.start, float(version)) for t, version in story.commits]
    return _curve(story, points, "newest version that is safe on every rank", over_time=True)


def losses(story: Story) -> Svg:
    """Loss per step, with a mark at each iteration that a failover interrupted."""
    points = [(float(step), loss) for step, loss in story.losses if math.isfinite(loss)]
    return _curve(story, points, "loss per step", over_time=False)


def phases(story: Story) -> Svg:
    """A stacked bar per failover, from the death to the end of the interrupted iteration."""
    row, top = 30.0, 10.0
    bottom = top + row * max(len(story.recoveries), 1)
    svg = Svg(WIDTH, bottom + 34, "seconds per phase of each failover")
    longest = max((max(sum(r.phases.values()), r.total_s) for r in story.recoveries), default=1.0)
    left = _LEFT + 90
    x = Scale(0, longest or 1.0, left, WIDTH - _RIGHT - 70)
    for tick in x.ticks():
        svg.line(x(tick), top, x(tick), bottom, _GRID)
        svg.text(x(tick), bottom + 18, f"{tick:g} s", "middle", _MUTED)
    for index, recovery in enumerate(story.recoveries):
        y = top + row * index
        dead = ", ".join(map(str, recovery.dead))
        svg.text(left - 10, y + row / 2 + 4, f"epoch {recovery.epoch}, rank {dead}", "end")
        at = 0.0
        for name, duration in recovery.phases.items():
            svg.rect(x(at), y + 5, x(at + duration) - x(at), row - 10, f"fill:var(--{name})",
                     f"{name}: {duration:.3f} s ({PHASES[name]})")  # fmt: skip
            at += duration
        svg.text(x(max(at, recovery.total_s)) + 8, y + row / 2 + 4, f"{recovery.total_s:.3f} s")
    return svg


def _life_words(life: Life, story: Story) -> str:
    kind = "first process" if life.epoch == 0 else "spare" if life.warm else "process started cold"
    if life.code is None:
        fate = "still there when the log ends"
    elif life.code < 0:
        fate = f"killed by signal {-life.code}"
    else:
        fate = f"exit code {life.code}"
    end = story.end if life.end is None else life.end
    return (
        f"rank {life.rank}, process {life.pid} on node {life.node} ({kind}): "
        f"{life.start - story.start:.2f} s to {end - story.start:.2f} s, {fate}"
    )


def _time_axis(svg: Svg, story: Story, top: float, bottom: float) -> Scale:
    x = Scale(0, story.end - story.start, _LEFT, WIDTH - _RIGHT)
    for tick in x.ticks(8):
        svg.line(x(tick), top, x(tick), bottom, _GRID)
        svg.text(x(tick), bottom + 18, f"{tick:g} s", "middle", _MUTED)
    return x


def _curve(story: Story, points: list[tuple[float, float]], label: str, over_time: bool) -> Svg:
    top, bottom = 24.0, 244.0
    svg = Svg(WIDTH, bottom + 34, label)
    values = [value for _, value in points] or [0.0, 1.0]
    y = Scale(min(values), max(values), bottom - 4, top + 4)
    for tick in y.ticks(5):
        svg.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), _GRID)
        svg.text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end", _MUTED)
    marks: list[tuple[float, int]]
    if over_time:
        x = _time_axis(svg, story, bottom, bottom)
        marks = [(r.began - story.start, r.epoch) for r in story.recoveries]
    else:
        steps = [at for at, _ in points] or [0.0, 1.0]
        x = Scale(min(steps), max(steps), _LEFT, WIDTH - _RIGHT)
        _step_axis(svg, x, bottom)
        marks = [(r.v_star + 1, r.epoch) for r in story.recoveries]
    marks = [(x(at), epoch) for at, epoch in marks if x.low <= at <= x.high]
    for at, epoch in marks:
        svg.line(at, top, at, bottom, "stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3", f"epoch {epoch}")
    _epoch_labels(svg, marks, top - 6)
    place: Callable[[tuple[float, float]], tuple[float, float]] = lambda p: (x(p[0]), y(p[1]))  # noqa: E731
    svg.polyline([place(p) for p in thin(points)], "stroke:var(--first);stroke-width:1.8;stroke-linejoin:round")
    return svg


def _epoch_labels(svg: Svg, marks: list[tuple[float, int]], y: float) -> None:
    """Names above marks, as many as there is room for."""
    free = -math.inf
    for at, epoch in sorted(marks):
        if at - 26 >= free:
            svg.text(at, y, f"epoch {epoch}", "middle", _MUTED)
            free = at + 26


def _step_axis(svg: Svg, x: Scale, bottom: float) -> None:
    for tick in x.ticks(8):
        if tick == int(tick):
            svg.text(x(tick), bottom + 18, f"step {tick:g}", "middle", _MUTED)
