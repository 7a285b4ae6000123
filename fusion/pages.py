"""What our HTML pages have in common: one look, tables, and how numbers are shown.

No script, no request: a page is a file that can be sent to anybody.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

STYLE = """
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


def head(title: str, tasks: Sequence[str]) -> str:
    """Return the beginning of a page."""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{text(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style>"
        f"<h1>{text(title)}: {text(', '.join(tasks))}</h1>"
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[int] = ()) -> str:
    """Return a table; the columns ``texts`` hold words and are to the left."""

    def row(cells: Sequence[str], kind: str) -> str:
        marks = (" class='text'" if place in texts else "" for place in range(len(cells)))
        return "".join(f"<{kind}{mark}>{text(cell)}</{kind}>" for cell, mark in zip(cells, marks, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<div class='wide'><table><thead><tr>{row(titles, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"


def milliseconds(timing: dict[str, float]) -> str:
    """Show a timing: its median and half its interquartile range."""
    return f"{timing['median_seconds'] * 1e3:.3f} ± {timing['iqr_seconds'] * 5e2:.3f}"


def percent(value: float) -> str:
    """Show a share as it was given.

    >>> percent(0.015)
    '1.5%'
    """
    return f"{100 * value:g}%"


def share(value: float | None) -> str:
    """Show a share with two decimals, nothing for None.

    >>> share(0.98765), share(None)
    ('98.77%', '')
    """
    return "" if value is None else f"{value:.2%}"


def count(value: float) -> str:
    """Show a count with three digits.

    >>> count(1234567), count(12)
    ('1.23 M', '12')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def text(value: object) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value))
