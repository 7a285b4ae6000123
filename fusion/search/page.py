"""One HTML page of a search: what is shared, what it costs, what it gains, and what became of every candidate.

No script, no request: the page is a file that can be sent to anybody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion.pages import count, head, milliseconds, percent, share, table, text
from fusion.search.front_picture import cost_label, drop_of, front_svg, gain_of
from fusion.search.report import FusionReport
from fusion.search.tree_picture import colours_of, tree_svg


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
        head(title, tasks),
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
            f"at most {percent(entry['threshold'])}",
            f"{entry['speedup']:.2f}x",
            milliseconds(entry["latency"]),
            milliseconds(entry["original_latency"]),
            count(entry["flops"]),
            f"{entry['flops'] / max(1, report['original']['flops']):.2f}",
            count(entry["parameters"]),
            _verdict(entry),
        )
        for entry in report["best"]
    ]
    titles = ("allowed drop", "speedup", "latency, ms", "before, ms", "FLOPs", "share of before", "parameters", "held-out data")
    told = (
        f"It ended after {report['seconds']:.0f} s and {len(report['candidates'])} candidates: {text(report['why'])}. Latency "
        f"is the median of measured passes of {report['latency_batch']} sample(s), ± half their interquartile range; FLOPs "
        "count products only, not elementwise work."
    )
    return table(titles, rows, texts={7}) + f"<p class='soft'>{told}</p>"


def _verdict(entry: dict[str, Any]) -> str:
    rejected = entry["rejected_on_test"]
    told = "none given" if entry["is_within"] is None else "within"
    if entry["candidate"] == 0:
        told = "nothing shared"
    return told + (f"; {len(rejected)} faster one(s) were not" if rejected else "")


def _entry(entry: dict[str, Any], colours: dict[str, str]) -> str:
    titles = ("task", "score", "before", "after", "drop", "±", "held-out before", "after", "drop", "±")
    rows = [
        (
            task["task"],
            task["kind"],
            *(share(task[name]) for name in ("before", "after", "drop", "error")),
            *(share(task[name]) for name in ("test_before", "test_after", "test_drop", "test_error")),
        )
        for task in entry["tasks"]
    ]
    is_shared = entry["candidate"] != 0
    what = f"candidate {entry['candidate']}, {entry['speedup']:.2f}x" if is_shared else "the models side by side"
    return (
        f"<h2>Drop of at most {percent(entry['threshold'])}: {what}</h2>"
        f"<div class='wide'>{tree_svg(entry['tree'], colours)}</div>{table(titles, rows, texts={1})}"
    )


def _front(report: dict[str, Any]) -> str:
    rows = [
        (
            f"{point['candidate'] or 'original'}",
            f"{point['speedup']:.2f}x",
            share(point["drop"]),
            count(point["parameters"]),
            f"{point['epoch']:g}",
        )
        for point in report["front"]
    ]
    titles = ("candidate", cost_label(report), "largest drop", "parameters", "epochs")
    details = f"<details><summary>the {len(rows)} points of the front</summary>{table(titles, rows)}</details>"
    return f"<h2>Front</h2><div class='wide'>{front_svg(report)}</div>{details}"


def _candidates(report: dict[str, Any]) -> str:
    rows = [
        (
            str(record["number"]),
            record["status"],
            f"{gain_of(record, report):.2f}x",
            share(drop_of(record)),
            str(record["epochs"]),
            str(len(record["pairs"])),
            record["why"],
        )
        for record in report["candidates"]
    ]
    titles = ("candidate", "fate", cost_label(report), "drop", "epochs", "mutations", "why")
    details = f"<details><summary>all {len(rows)}</summary>{table(titles, rows, texts={1, 6})}</details>"
    return f"<h2>Candidates</h2>{_audit(report['audit'])}{details}"


def _audit(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return ""
    rows = [(why, str(counts["ended"]), str(counts["wrong"])) for why, counts in audit["reasons"].items()]
    told = (
        f"Under audit all were trained to the end: {audit['ended_early']} would have been left out or ended early, "
        f"{len(audit['wrongly_ended'])} of them were within an allowed drop after all; {audit['would_have_met']} were in all."
    )
    titles = ("reason", "ended", "wrongly")
    return f"<p>{told}</p>" + (table(titles, rows) if rows else "")


def _settings(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rows = [(name, str(value)) for name, value in report["settings"].items()]
    notes = "".join(f"<li>{text(note)}</li>" for note in report["notes"])
    return (
        f"<h2>Settings</h2><p class='soft'>{text(versions)}, {report['threads']} thread(s)</p>"
        f"<details><summary>all settings</summary>{table(('setting', 'value'), rows, texts={1})}</details><ul>{notes}</ul>"
    )
