"""What ``unified variants profile`` does: wires profiling to what people see."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from serving.data import TaskData
from serving.profiling import BATCHES, ProfileOptions, ProfileReport, profile
from serving.records import Family
from serving.store import VariantStore
from unified.errors import UnifiedError
from unified.fusing.data_files import read_data
from unified.listeners import json_line
from unified.quantities import plural, seconds_text
from unified.run_command import EXIT_DONE, EXIT_INTERRUPTED, terminated_like_interrupted
from unified.summary import finite
from unified.tensor_files import SUFFIXES
from unified.terminal import can_redraw, line_writer, make_console, show
from unified.variants.data import task_data
from unified.variants.list_command import families_of
from unified.variants.profile_views import ProfileLive, Tell, known_table, known_to_json, profile_lines

EXIT_REJECTED = 3
_HELD_OUT = ("validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileCommand:
    """The options of ``unified variants profile``; see its help."""

    variants: Path
    family: str | None = None
    data: Path | None = None
    device: str = "cpu"
    threads: int = 1
    batches: tuple[int, ...] = BATCHES
    force: bool = False
    as_json: bool = False


def profile_variants(options: ProfileCommand) -> int:
    """Profile variants, show how it goes, and return the exit code.

    Raises:
        InvalidSubmission: With what is wrong with the data.
        ServingError: If there is no such store, family or device, or the data do not fit.
        UnifiedError: If data are given for several families.
    """
    store = VariantStore.open(options.variants)
    families = families_of(store, options.family)
    if options.data is not None and len(families) > 1:
        raise UnifiedError(f"--data holds samples of one family, and there are {', '.join(families)}: say which with --family")
    console = make_console()
    reports: dict[str, ProfileReport] = {}
    try:
        with terminated_like_interrupted(), _view(console, as_json=options.as_json) as tell:
            for name in families:
                data = None if options.data is None else read_held_out(options.data, store.family(name))
                reports[name] = profile(
                    store,
                    name,
                    data,
                    device=options.device,
                    threads=options.threads,
                    options=ProfileOptions(batches=options.batches, force=options.force),
                    progress=tell,
                )
    except KeyboardInterrupt:
        line_writer(sys.stderr)("unified: interrupted; what was measured by then is kept")
        return EXIT_INTERRUPTED
    for name, report in reports.items():
        _report_end(store, name, report, console, as_json=options.as_json)
    return EXIT_REJECTED if any(report.rejected for report in reports.values()) else EXIT_DONE


def read_held_out(source: Path, family: Family) -> TaskData:
    """Return the samples of a file, or of the validation (without one the test) file of a folder.

    Raises:
        InvalidSubmission: With what is wrong with them.
        UnifiedError: If there is no such file.
    """
    if source.is_dir():
        found = [path for part in _HELD_OUT for suffix in SUFFIXES if (path := source / f"{part}{suffix}").is_file()]
        if not found:
            raise UnifiedError(f"{source}: expected validation or test, ending in {', '.join(SUFFIXES)}; found neither")
        source = found[0]
    rows = read_data(source, family.task_names)["train"]  # the only part of a single file
    return task_data(rows, family.task_names, tuple(spec.name for spec in family.inputs))


def _view(console: Console, *, as_json: bool) -> AbstractContextManager[Tell]:
    if as_json or not can_redraw(console):
        return profile_lines(sys.stdout, as_json=as_json)
    return ProfileLive(console)


def _report_end(store: VariantStore, name: str, report: ProfileReport, console: Console, *, as_json: bool) -> None:
    write, family = line_writer(sys.stdout), store.family(name)
    _, known = store.known(name, report.hardware.fingerprint)
    if as_json:
        content = known_to_json(family, report.hardware.fingerprint, known)
        told = {"event": "Profiled", **content, "hardware": report.hardware.to_json(), "seconds": report.seconds}
        write(json_line(finite({**told, "scored": list(report.scored), "timed": list(report.timed)})))
        return
    show(console, known_table(family, known, console.width))
    names = {each.variant.id: each.variant.name for each in known}
    for key, problem in report.rejected.items():
        write(f"rejected {names[key]}: {problem}; it is not served")
    if report.suspect:
        write(
            f"{plural(len(report.suspect), 'profile')} may be wrong, because the machine was busy: run this again when it rests"
        )
    if report.timed and not report.is_cold:
        write("files could not be dropped from memory here: cold loads were measured with them in it")
    write(
        f"{name}: {len(report.scored)} scored, {len(report.timed)} timed of {plural(len(known), 'variant')} in "
        f"{seconds_text(report.seconds)}, on {report.hardware.device} ({report.hardware.device_name}) with "
        f"{plural(report.hardware.threads, 'thread')}"
    )
