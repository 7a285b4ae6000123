"""One HTML page of a search: what is shared, what it costs, what it gains, and what became of every candidate.

No script, no request: the page is a file that can be sent to anybody.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from fusion.search.front_picture import cost_label, drop_of, front_svg, gain_of
from fusion.search.report import FusionReport
from fusion.search.tree_picture import colours_of, tree_svg

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6675; --line: #d5dae2; --paper: #ffffff; --band: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #36404d; --paper: #14181f; --band: #1c222b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } p { max-width: 46rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; } .soft { color: var(--soft); } .wide { overflow-x: auto; }
details > summary { cursor: pointer; color: var(--soft); } tbody tr:hover { background: var(--band); }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .soft { fill: var(--soft); }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--line); } svg { display: block; }
svg .task { font-weight: 600; }
svg .box text { fill: #10151d; font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
"""


def write_page(report: FusionReport, path: Path, *, title: str = "Fused models") -> None:
    """Write the page of a search.

    Args:
        report: What it found.
        path: Of the HTML file.
        title: Its heading.
    """
    path.write_text(page(report.to_json(), title=title), encoding="utf-8")


def page(report: dict[str, Any], *, title: str = "Fused models") -> str:
    """Return the page of a report that was written as JSON."""
    tasks = [task["task"] for task in report["best"][0]["tasks"]]
    colours = colours_of(tasks)
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title>",
        "<meta name='viewport' content='width=device-width'>",
        f"<style>{_STYLE}</style><h1>{_text(title)}: {_text(', '.join(tasks))}</h1>",
        _summary(report),
        *(_entry(entry, colours) for entry in report["best"]),
        _front(report),
        _candidates(report),
        _settings(report),
    ]
    return "\n".join(parts) + "\n</html>\n"


def _summary(report: dict[str, Any]) -> str:
    rows = [
        (
            f"at most {_percent(entry['threshold'])}",
            f"{entry['speedup']:.2f}x",
            _milliseconds(entry["latency"]),
            _milliseconds(entry["original_latency"]),
            _count(entry["flops"]),
            f"{entry['flops'] / max(1, report['original']['flops']):.2f}",
            _count(entry["parameters"]),
            _verdict(entry),
        )
        for entry in report["best"]
    ]
    head = ("allowed drop", "speedup", "latency, ms", "before, ms", "FLOPs", "share of before", "parameters", "held-out data")
    told = (
        f"It ended after {report['seconds']:.0f} s and {len(report['candidates'])} candidates: {_text(report['why'])}. Latency "
        f"is the median of measured passes of {report['latency_batch']} sample(s), ± half their interquartile range; FLOPs "
        "count products only, not elementwise work."
    )
    return _table(head, rows, texts={7}) + f"<p class='soft'>{told}</p>"


def _verdict(entry: dict[str, Any]) -> str:
    rejected = entry["rejected_on_test"]
    told = "none given" if entry["is_within"] is None else "within"
    if entry["candidate"] == 0:
        told = "nothing shared"
    return told + (f"; {len(rejected)} faster one(s) were not" if rejected else "")


def _entry(entry: dict[str, Any], colours: dict[str, str]) -> str:
    head = ("task", "score", "before", "after", "drop", "±", "held-out before", "after", "drop", "±")
    rows = [
        (
            task["task"],
            task["kind"],
            *(_share(task[name]) for name in ("before", "after", "drop", "error")),
            *(_share(task[name]) for name in ("test_before", "test_after", "test_drop", "test_error")),
        )
        for task in entry["tasks"]
    ]
    is_shared = entry["candidate"] != 0
    what = f"candidate {entry['candidate']}, {entry['speedup']:.2f}x" if is_shared else "the models side by side"
    return (
        f"<h2>Drop of at most {_percent(entry['threshold'])}: {what}</h2>"
        f"<div class='wide'>{tree_svg(entry['tree'], colours)}</div>{_table(head, rows, texts={1})}"
    )


def _front(report: dict[str, Any]) -> str:
    rows = [
        (
            f"{point['candidate'] or 'original'}",
            f"{point['speedup']:.2f}x",
            _share(point["drop"]),
            _count(point["parameters"]),
            f"{point['epoch']:g}",
        )
        for point in report["front"]
    ]
    head = ("candidate", cost_label(report), "largest drop", "parameters", "epochs")
    table = f"<details><summary>the {len(rows)} points of the front</summary>{_table(head, rows)}</details>"
    return f"<h2>Front</h2><div class='wide'>{front_svg(report)}</div>{table}"


def _candidates(report: dict[str, Any]) -> str:
    rows = [
        (
            str(record["number"]),
            record["status"],
            f"{gain_of(record, report):.2f}x",
            _share(drop_of(record)),
            str(record["epochs"]),
            str(len(record["pairs"])),
            record["why"],
        )
        for record in report["candidates"]
    ]
    head = ("candidate", "fate", cost_label(report), "drop", "epochs", "mutations", "why")
    table = f"<details><summary>all {len(rows)}</summary>{_table(head, rows, texts={1, 6})}</details>"
    return f"<h2>Candidates</h2>{_audit(report['audit'])}{table}"


def _audit(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return ""
    rows = [(why, str(counts["ended"]), str(counts["wrong"])) for why, counts in audit["reasons"].items()]
    told = (
        f"Under audit all were trained to the end: {audit['ended_early']} would have been left out or ended early, "
        f"{len(audit['wrongly_ended'])} of them were within an allowed drop after all; {audit['would_have_met']} were in all."
    )
    head = ("reason", "ended", "wrongly")
    return f"<p>{told}</p>" + (_table(head, rows) if rows else "")


def _settings(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rows = [(name, str(value)) for name, value in report["settings"].items()]
    notes = "".join(f"<li>{_text(note)}</li>" for note in report["notes"])
    return (
        f"<h2>Settings</h2><p class='soft'>{_text(versions)}, {report['threads']} thread(s)</p>"
        f"<details><summary>all settings</summary>{_table(('setting', 'value'), rows, texts={1})}</details><ul>{notes}</ul>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[int] = ()) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        marks = (" class='text'" if place in texts else "" for place in range(len(cells)))
        return "".join(f"<{kind}{mark}>{_text(cell)}</{kind}>" for cell, mark in zip(cells, marks, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<div class='wide'><table><thead><tr>{row(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"


def _milliseconds(timing: dict[str, float]) -> str:
    return f"{timing['median_seconds'] * 1e3:.3f} ± {timing['iqr_seconds'] * 5e2:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def _text(value: object) -> str:
    return html.escape(str(value))
