"""The commands ``unified variants select`` and ``figures``: what they print, and how they end."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from serving.drafts import Draft
from serving.profiling import ProfileOptions, profile
from serving.records import Source
from serving.selection import State, pareto_offers
from serving.store import VariantStore
from tests.unit.serving_models import TASKS, draft, filled_store, labelled, two_tasks
from unified.cli import main
from unified.variants.select_command import offers_table


def _drafts() -> list[Draft]:
    kinds = [(Source.PRUNED, TASKS, "all"), *((Source.HEAD_REMOVED, (task,), task) for task in TASKS)]
    kinds += [(Source.SINGLE, (task,), f"single-{task}") for task in TASKS]
    return [
        replace(draft(f"{name}-p50", tasks, seed=seed), source=source, ratio=0.5)
        for seed, (source, tasks, name) in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "variants"
    store, _ = filled_store(path, *_drafts())
    profile(store, "panels", labelled(), options=ProfileOptions(batches=(1, 2), max_seconds=0.02))
    store.close()
    return path


def run(*arguments: object) -> int:
    return main(["variants", *map(str, arguments)])


def test_select_prints_what_is_chosen_among_what_else_there_is(variants, capsys):
    assert run("select", variants) == 0
    first, titles, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("chosen: ")
    assert titles.split() == ["variants", "predicted", "ms", "load", "ms", "inference", "ms", "shoe", "size", "mean"]
    assert sum(line.startswith("chosen") for line in lines) == 1
    assert last == "p95 of 1 row, all resident, 5 variants"

    assert run("select", variants, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["mishit"], told["closest"]) == ("panels", None, [])
    assert told["chosen"] == told["front"][-1]  # without limits the most accurate of all
    assert first == f"chosen: {' + '.join(told['chosen']['names'])} ({'+'.join(told['chosen']['variants'])})"


def test_select_leaves_columns_out_on_a_narrow_screen_and_no_name_is_broken(variants):
    table = VariantStore.open(variants).table("panels")
    offers = [("chosen", offer) for offer in pareto_offers(frozenset(TASKS), table, State.all_resident(table))]
    names = {variant.name for variant in table.variants}
    for width, titles in ((200, ["load ms", "inference ms", "mean"]), (60, [])):
        console = Console(width=width, file=io.StringIO())
        with console.capture() as shown:
            console.print(offers_table(offers, table, width))
        text = shown.get()
        assert [title for title in ("load ms", "inference ms", "mean") if title in text] == titles
        assert {word for word in text.split() if "-p50" in word} <= names


def test_select_says_why_nothing_satisfies_a_query_and_what_comes_near(variants, capsys):
    assert run("select", variants, "--tasks", "size", "--latency-ms", "1e-6") == 3
    first, _, *lines, _ = capsys.readouterr().out.splitlines()
    assert first == "mishit: no variants are fast enough"
    assert sum(line.startswith("nearest") for line in lines) == 1

    floor = ("--min-accuracy", "shoe=1,size=0.5", "--on-mishit", "best_effort")
    assert run("select", variants, *floor, "--resident", "none", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["mishit"] == "accuracy"
    assert told["chosen"] == told["closest"][0]
    assert told["chosen"]["load_ms"] > 0
    assert run("select", variants, *floor) == 3
    assert "\nchosen all the same: " in capsys.readouterr().out


def test_select_reads_every_option(variants, capsys):
    options = ("--tasks", "shoe,size", "--latency-ms", 1e6, "--min-accuracy", 0, "--accuracy-mode", "average")
    assert run("select", variants, *options, "--budget", "equal", "--rows", 2, "--quantile", "p50", "--family", "panels") == 0
    assert "p50 of 2 rows, all resident, 5 variants" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "hat"), "family 'panels' has no task 'hat'; it has shoe, size"),
        (("--tasks", "shoe", "--min-accuracy", "size=0.5"), "min_accuracy of size, which the query does not ask for"),
        (("--budget", "equal"), "give latency_ms"),
        (("--family", "hats"), "has no family 'hats'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(variants, capsys, options, message):
    assert run("select", variants, *options) == 1
    assert message in capsys.readouterr().err


def test_what_was_not_profiled_or_not_named_is_refused_with_the_remedy(tmp_path, capsys):
    store, _ = filled_store(tmp_path / "variants", draft("all"))
    assert run("select", store.path) == 1
    assert (
        "none of the 1 variants of 'panels' was profiled on this machine; 'unified variants profile" in capsys.readouterr().err
    )
    VariantStore.create(store.path, two_tasks("more")).close()
    assert run("figures", store.path, "--out", tmp_path / "figures") == 1
    assert "has the families panels, more: say which with --family" in capsys.readouterr().err


@pytest.mark.parametrize("floor", ["2", "shoe=2", "shoe=0.5,0.3", "much"])
def test_a_floor_is_a_score(variants, floor, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("select", variants, "--min-accuracy", floor)
    assert "expected" in capsys.readouterr().err


def test_figures_writes_all_of_them_and_prints_what_they_show(variants, tmp_path, capsys):
    out = tmp_path / "figures"
    assert run("figures", variants, "--out", out, "--grid", 3, "--head-seconds", 0.2, "--residency", "all") == 0
    text = capsys.readouterr().out
    numbers = sorted({path.name[:4] for path in out.iterdir()})
    assert numbers == ["fig3", "fig4", "fig5", "fig6", "fig7", "fig8"]
    assert len(list(out.iterdir())) == 12
    assert "shoe, size  all       per task" in text
    assert "layers in a head  all heads ms  one head ms" in text
    assert "left out" not in text


def test_figures_says_what_the_variants_do_not_allow(tmp_path, capsys):
    store, _ = filled_store(tmp_path / "variants", replace(draft("shoe", ("shoe",)), source=Source.SINGLE))
    profile(store, "panels", labelled(), options=ProfileOptions(batches=(1,), max_seconds=0.02))
    assert run("figures", store.path, "--out", tmp_path / "figures", "--grid", 2, "--residency", "all") == 0
    text = capsys.readouterr().out
    assert "figure 4 left out: no variant answers several tasks" in text
    assert "figure 5 left out: family 'panels' has no profiled multi-task variant that answers shoe, size" in text
