"""The report as one HTML page: no scripts, nothing loaded from elsewhere, readable in light and dark."""

from __future__ import annotations

from html import escape
from typing import Any

from ff_core.observe import charts
from ff_core.observe.events import PHASES
from ff_core.observe.story import Story
from ff_core.units import format_bytes

# Each colour keeps its hue in both schemes; the names of phases double as CSS variables.
_STYLE = """
:root { color-scheme: light dark;
  --ground:#fbfbfa; --card:#fff; --text:#1d2127; --muted:#5f6875; --grid:#e4e6ea; --edge:#d9dce1;
  --first:#3b6fb6; --spare:#2e8b62; --cold:#8a6d1f; --band:#e0a13a; --bad:#c0392b; --good:#2e8b62;
  --detect:#c0563f; --halt:#dc9a3c; --verdict:#8d6fb8; --join:#3b6fb6; --regroup:#2f9a94; --restore:#6a9c3a;
  --resume:#9aa1ab; }
@media (prefers-color-scheme: dark) { :root {
  --ground:#14171b; --card:#1c2026; --text:#e6e9ee; --muted:#9aa4b1; --grid:#2d333b; --edge:#333a44;
  --first:#6f9fe0; --spare:#57bd8e; --cold:#c9a84c; --band:#b9812a; --bad:#ef7b6c; --good:#57bd8e;
  --detect:#e0796a; --halt:#e6ae5a; --verdict:#b195dc; --join:#6f9fe0; --regroup:#56c2bc; --restore:#93c763;
  --resume:#78818d; } }
* { box-sizing: border-box }
body { margin:0; background:var(--ground); color:var(--text); font:15px/1.5 system-ui, sans-serif }
main { max-width:1040px; margin:0 auto; padding:28px 20px 60px }
h1 { font-size:1.5rem; margin:0 0 4px } h2 { font-size:1.05rem; margin:0 0 2px }
p { margin:0 0 12px; color:var(--muted) }
section { background:var(--card); border:1px solid var(--edge); border-radius:10px; padding:18px 20px; margin-top:18px }
svg { width:100%; height:auto; display:block } svg text { font:12px system-ui, sans-serif; fill:var(--text) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(140px, 1fr)); gap:12px; margin-top:18px }
.tile { background:var(--card); border:1px solid var(--edge); border-radius:10px; padding:12px 16px }
.tile b { display:block; font-size:1.35rem; font-weight:600 } .tile span { color:var(--muted); font-size:.86rem }
.scroll { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.9rem }
th, td { text-align:right; padding:5px 7px; border-bottom:1px solid var(--grid); white-space:nowrap }
th { color:var(--muted); font-weight:500 } .left { text-align:left; white-space:normal }
td.cause { min-width:9.5rem }
.key { display:inline-flex; align-items:center; gap:6px; margin:0 16px 6px 0; color:var(--muted); font-size:.86rem }
.key i { width:12px; height:12px; border-radius:3px; display:inline-block } .bad { color:var(--bad) }
"""


def render(story: Story, title: str) -> str:
    """The whole document. title: what the job is called, e.g. its output directory."""
    end = {None: "still running", 0: "ended well"}.get(story.code, f"ended with exit code {story.code}")
    words = escape("; ".join(part for part in (end, story.coverage) if part))
    parts = [
        f"<h1>{escape(title)}</h1><p>{_count(story.world_size, 'rank')} on {_count(story.nodes, 'node')}; {words}</p>",
        _tiles(story),
        _section(
            "Ranks over time",
            "One bar per process. Bands: from a death until every rank has finished the interrupted iteration.",
            _keys({"first": "from the start", "spare": "spare", "cold": "started after the death"}),
            str(charts.timeline(story)),
        ),
    ]
    if story.recoveries:
        parts.append(
            _section(
                "Recovery",
                "Seconds from the death to the end of the interrupted iteration, by phase.",
                _keys({name: name for name in PHASES}),
                str(charts.phases(story)) + _recovery_table(story),
            )
        )
    if story.losses:
        parts.append(_section("Loss", "Dashed: iterations that were interrupted.", "", str(charts.losses(story))))
    if story.commits:
        picture = str(charts.progress(story))
        parts.append(_section("Progress", "Newest version that is safe on every rank.", "", picture))
    if story.stats:
        text = "Counters of the process that played each rank last. lost: training stood still for a copied version."
        parts.append(_section("Replication", text, "", _stats(story)))
    if story.notes:
        parts.append(_notes(story))
    if story.summary and story.code:
        parts.append(f'<section><h2>How it ended</h2><pre class="scroll bad">{escape(story.summary)}</pre></section>')
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: failover report</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _tiles(story: Story) -> str:
    lost = sum(recovery.total_s for recovery in story.recoveries)
    slowest = max((recovery.total_s for recovery in story.recoveries), default=None)
    tiles = {
        "failovers": str(len(story.recoveries)),
        "restarts from the beginning": str(story.restarts),
        "newest version safe everywhere": str(max(story.last_version, 0)),
        "in recovery, all failovers": f"{lost:.2f} s",
        "slowest failover": "none" if slowest is None else f"{slowest:.2f} s",
        "from start to end": f"{story.end - story.start:.1f} s",
    }
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles.items())
    return f'<div class="tiles">{cells}</div>'


def _section(title: str, text: str, keys: str, content: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{keys}{content}</section>"


def _keys(names: dict[str, str]) -> str:
    spans = (f'<span class="key"><i style="background:var(--{var})"></i>{word}</span>' for var, word in names.items())
    return f"<div>{''.join(spans)}</div>"


def _recovery_table(story: Story) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("from version", *PHASES, "total", "restored", "spare"))
    rows = []
    for r in story.recoveries:
        numbers = "".join(f"<td>{duration:.3f}</td>" for duration in r.phases.values())
        restored = format_bytes(r.bytes["restored"]) if "restored" in r.bytes else ""
        rows.append(
            f'<tr><td>{r.epoch}</td><td class="left cause">{escape(r.cause)}</td><td>{r.v_star}</td>{numbers}'
            f"<td><b>{r.total_s:.3f}</b></td><td>{restored}</td><td>{escape(r.spare)}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th>epoch</th><th class="left">what happened</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _stats(story: Story) -> str:
    names = list(dict.fromkeys(name for counters in story.stats.values() for name in counters))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("rank", *names))
    rows = []
    for rank in sorted(story.stats):
        cells = "".join(f"<td>{escape(_number(name, story.stats[rank].get(name)))}</td>" for name in names)
        rows.append(f"<tr><td>{rank}</td>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _number(name: str, value: object) -> str:
    if isinstance(value, int | float) and name.startswith("bytes"):
        return format_bytes(value)
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _stacks(groups: list[Any]) -> str:
    """Of each group of ranks that are at the same place, to be opened."""
    return "".join(
        f"<details><summary>where rank {', '.join(map(str, ranks))} was</summary><pre>{escape(text)}</pre></details>"
        for ranks, text in groups
    )


def _notes(story: Story) -> str:
    rows = []
    for event in story.notes:
        words = ", ".join(f"{name}: {value}" for name, value in event.fields.items() if name != "stacks")
        rows.append(
            f'<tr><td>{event.t - story.start:.2f} s</td><td class="left">{escape(event.kind)}</td>'
            f'<td class="left">{escape(words[:400])}{_stacks(event.fields.get("stacks") or [])}</td></tr>'
        )
    table = f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<section><h2>Other events</h2>{table}</section>"
