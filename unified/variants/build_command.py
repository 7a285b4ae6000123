"""What ``unified variants build`` does: wires building to what people see."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from serving.progress import Tell
from unified.listeners import json_line
from unified.quantities import plural, seconds_text
from unified.run_command import EXIT_DONE, EXIT_INTERRUPTED, terminated_like_interrupted
from unified.summary import finite
from unified.terminal import can_redraw, line_writer, make_console, show
from unified.variants.api import Building, Systems, build_variants
from unified.variants.views import BuildLive, build_lines, variants_table

EXIT_INCOMPLETE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The options of ``unified variants build``; see its help."""

    parent: Path
    data: Path
    out: Path
    name: str | None = None
    ratios: tuple[float, ...] | None = None
    subsets: str | tuple[tuple[str, ...], ...] = "singles+all"
    systems: Systems | None = None
    criterion: str = "magnitude"
    ratio_of: str = "channels"
    train_epochs: int | None = None
    finetune_epochs: int = 10
    batch_size: int = 64
    lr: float = 0.001
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    slots: int | str = "auto"
    threads: int | None = None
    trust: bool = False
    as_json: bool = False


def build(options: BuildOptions) -> int:
    """Build variants, show how it goes, and return the exit code.

    Raises:
        InvalidSubmission: With what is wrong with the parent or the data.
        ServingError: If nothing can be made.
        UnifiedError: If the parent does not answer tasks by name, or does not take the data.
    """
    console = make_console()
    begin = time.monotonic()
    try:
        with terminated_like_interrupted(), _view(console, as_json=options.as_json) as tell:
            building = _build(options, tell)
    except KeyboardInterrupt:
        line_writer(sys.stderr)(f"unified: interrupted; what was finished by then is in {options.out}")
        return EXIT_INTERRUPTED
    _report_end(building, console, time.monotonic() - begin, as_json=options.as_json)
    return EXIT_INCOMPLETE if building.built.left_out else EXIT_DONE


def _build(options: BuildOptions, tell: Tell) -> Building:
    return build_variants(
        options.parent,
        options.data,
        options.out,
        name=options.name,
        ratios=options.ratios,
        subsets=options.subsets,
        systems=options.systems,
        train_epochs=options.train_epochs,
        finetune_epochs=options.finetune_epochs,
        weights=options.weights,
        device=options.device,
        slots=options.slots,
        threads=options.threads,
        trust=options.trust,
        progress=tell,
        criterion=options.criterion,
        ratio_of=options.ratio_of,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
    )


def _view(console: Console, *, as_json: bool) -> AbstractContextManager[Tell]:
    if as_json or not can_redraw(console):
        return build_lines(sys.stdout, as_json=as_json)
    return BuildLive(console)


def _report_end(building: Building, console: Console, seconds: float, *, as_json: bool) -> None:
    built, write = building.built, line_writer(sys.stdout)
    if as_json:
        content = {
            "event": "Built",
            "family": building.family,
            "out": str(building.out),
            "seconds": seconds,
            "variants": [variant.to_json() for variant in built.variants],
            "left_out": {told.name: told.reason for told in built.left_out},
            "notes": list(building.notes),
        }
        write(json_line(finite(content)))
        return
    show(console, variants_table(built.variants))
    for note in building.notes:
        write(f"note: {note}")
    for told in built.left_out:
        write(f"left out {told.name}: {' '.join(told.reason.split())}")
    write(f"{plural(len(built.variants), 'variant')} of {building.family} in {building.out}, {seconds_text(seconds)}")
    write(f"measure them next: unified variants profile {building.out}")
