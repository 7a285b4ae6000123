"""One HTML page of a merge: what every combination of tasks costs, what is shared, what the estimator saw, how it was pruned.

No script, no request: the page is a file that can be sent to anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.merging.plots import figures, svg_of
from fusion.merging.records import OURS, TITLES, MergeReport, joined
from fusion.pages import count, head, milliseconds, percent, share, table, text


def write_page(report: MergeReport, folder: Path, *, title: str = "Merged models") -> None:
    """Write ``report.html`` and, beside it, its pictures as ``plots/NAME.png``.

    Args:
        report: Of the merge.
        folder: That there is.
        title: The page's heading.
    """
    content = report.to_json()
    pictures = figures(content)
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
    drawn = {name: svg_of(figure) for name, figure in pictures.items()}
    (folder / "report.html").write_text(page(content, drawn, title=title), encoding="utf-8")


def page(report: dict[str, Any], pictures: Mapping[str, str], *, title: str = "Merged models") -> str:
    """Return the page of a report that was written as JSON.

    Args:
        report: As :meth:`~fusion.merging.records.MergeReport.to_json` gives it.
        pictures: SVG by name: ``flops``, ``sharing``, ``curves``, ``rounds``; others are left out.
        title: The heading.
    """
    parts = [
        head(title, report["tasks"]),
        _summary(report),
        _costs(report, pictures),
        _layers(report, pictures),
        _alphas(report),
        _section("What neurons tell about other tasks", _CURVES, pictures.get("curves")),
        _rounds(report, pictures),
        _settings(report),
    ]
    return "\n".join(part for part in parts if part) + "\n</html>\n"


_CURVES = (
    "Each set grows by the neuron with which it tells least about the labels of the tasks it is not for: a line per set, "
    "dashed what the same set seems to tell about shuffled labels. Neurons up to the dot stay exclusive; neither set has the "
    "shared ones. A curve is flat while neurons tell nothing, climbs, and levels off where it tells all that the layer knows."
)


def _summary(report: dict[str, Any]) -> str:
    told = ", ".join(f"over {name} {found['average']:.2f} ({found['peak']:.2f})" for name, found in report["gains"].items())
    data = "held-out data" if report["is_held_out"] else "the data that chose (none were held out)"
    ours = report["schemes"][OURS]
    verdict = "" if ours["is_feasible"] else " <strong>Not every task is good enough; see the floors below.</strong>"
    return (
        f"<p>Gain in FLOPs on average over the combinations of tasks (and at most): {text(told)}. Scores are of {text(data)}; "
        f"alpha is {_alpha(report['alpha'])}; it took {report['seconds']:.0f} s.{verdict}</p>"
    )


def _costs(report: dict[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the paper's table 1: a line per combination, a column per scheme."""
    schemes = report["schemes"]
    titles = ("", *schemes, *(f"gain over {name}" for name in report["gains"]))
    blanks = ("",) * len(report["gains"])
    rows: list[tuple[str, ...]] = [
        (f"score {task}", *(share(scheme["scores"][task]) for scheme in schemes.values()), *blanks) for task in report["tasks"]
    ]
    for number, record in enumerate(schemes[OURS]["combinations"]):
        names = joined(record["tasks"])
        costs = (count(scheme["combinations"][number]["flops"]) for scheme in schemes.values())
        rows.append((f"FLOPs {names}", *costs, *(f"{found['ratios'][names]:.2f}" for found in report["gains"].values())))
    rows.append(("parameters", *(count(scheme["parameters"]) for scheme in schemes.values()), *blanks))
    for end in ("average", "peak"):
        if report["gains"]:
            gained = (f"{found[end]:.2f}" for found in report["gains"].values())
            rows.append((f"{end} gain", *("",) * len(schemes), *gained))
    told = (
        f"{'; '.join(TITLES[name] for name in schemes)}. FLOPs are for one sample, two for each product of a live edge; what "
        "is elementwise does not count. A gain is the FLOPs of the other over ours, whatever the scores."
    )
    return f"<h2>Costs</h2>{table(titles, rows)}<p class='soft'>{told}</p>{_picture(pictures.get('flops'))}{_latencies(report)}"


def _latencies(report: dict[str, Any]) -> str:
    if not report["latency_batch"]:
        return ""
    schemes = report["schemes"]
    rows = []
    for number, record in enumerate(schemes[OURS]["combinations"]):
        timings = [scheme["combinations"][number]["latency"] for scheme in schemes.values()]
        if all(timing is not None for timing in timings):
            rows.append((joined(record["tasks"]), *map(milliseconds, timings)))
    titles = ("latency, ms", *schemes)
    told = (
        f"Median of forward passes of {report['latency_batch']} sample(s), all in turns, ± half their interquartile range; "
        "the modules are specialised to the combination. Fewer FLOPs are not always less time on small layers."
    )
    return f"{table(titles, rows)}<p class='soft'>{told}</p>"


def _layers(report: dict[str, Any], pictures: Mapping[str, str]) -> str:
    groups = list(dict.fromkeys(group for layer in report["layers"] for group in layer["sizes"]))
    groups.sort(key=lambda group: (group.count("+"), group))
    rows = [
        (
            layer["name"],
            " + ".join(str(width) for width in layer["before"].values()),
            *(str(layer["sizes"].get(group, 0)) for group in groups),
            percent(round(layer["sharing"], 3)),
        )
        for layer in report["layers"]
    ]
    titles = ("layer", "before", *groups, "sharing ratio")
    return f"<h2>Neurons by the tasks they serve</h2>{table(titles, rows, texts={1})}{_picture(pictures.get('sharing'))}"


def _alphas(report: dict[str, Any]) -> str:
    if not report["alphas"]:
        return ""
    every = [joined(record["tasks"]) for record in report["schemes"][OURS]["combinations"]]
    names = [*every[: len(report["tasks"])], every[-1]]
    rows = [
        (
            _alpha(trial["alpha"]) + (" (chosen)" if trial["alpha"] == report["alpha"] else ""),
            *(count(trial["flops"][name]) for name in names),
            *(share(trial["scores"][task]) for task in report["tasks"]),
            "yes" if trial["is_feasible"] else "no",
        )
        for trial in report["alphas"]
    ]
    titles = ("alpha", *(f"FLOPs {name}" for name in names), *(f"score {task}" for task in report["tasks"]), "good enough")
    return f"<h2>Alphas tried</h2>{table(titles, rows)}"


def _rounds(report: dict[str, Any], pictures: Mapping[str, str]) -> str:
    tables = []
    for name, scheme in report["schemes"].items():
        rows = [
            (
                str(record["number"]),
                joined(record["network"]),
                ", ".join(f"{task} {share(score)}" for task, score in record["scores"].items()),
                ", ".join(f"{names} {count(flops)}" for names, flops in record["flops"].items()),
                "kept" if record["is_feasible"] else "undone" if record["number"] else "trained further",
                f"{record['seconds']:.1f} s",
            )
            for record in scheme["rounds"]
        ]
        if rows:
            titles = ("round", "network", "scores on validation", "FLOPs", "", "after")
            inner = table(titles, rows, texts={1, 2, 3, 4})
            tables.append(f"<details><summary>{text(TITLES[name])}: {len(rows)} rounds</summary>{inner}</details>")
    if not tables:
        return ""
    floors = ", ".join(f"{task} {share(floor)}" for task, floor in report["floors"].items())
    return f"<h2>Pruning</h2><p>Floors: {text(floors)}.</p>{_picture(pictures.get('rounds'))}{''.join(tables)}"


def _settings(report: dict[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in (report["settings"] | report["environment"]).items()]
    notes = "".join(f"<li>{text(note)}</li>" for note in report["notes"])
    listed = f"<ul>{notes}</ul>" if notes else ""
    inner = table(("setting", "value"), rows, texts={1})
    return f"<h2>Settings</h2>{listed}<details><summary>all settings</summary>{inner}</details>"


def _section(title: str, told: str, picture: str | None) -> str:
    return "" if picture is None else f"<h2>{title}</h2><p>{told}</p>{_picture(picture)}"


def _picture(picture: str | None) -> str:
    return "" if picture is None else f"<div class='wide'>{picture}</div>"


def _alpha(value: float | None) -> str:
    return "infinite" if value is None else f"{value:g}"
