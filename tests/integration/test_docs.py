"""The documentation is true: its code runs, its commands parse, its tables say what the code says, its links lead somewhere."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import unified
from schedulers.registry import BUILT_INS
from tests.integration.command_line import PATIENCE_SECONDS, environment
from tests.integration.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    anchors,
    blocks,
    job_rows,
    links,
    named,
    section,
    table,
)
from unified import cli, components, events, metrics
from unified.job import JobSpec

REFERENCE, JOB, EXTENDING = (ROOT / "docs" / name for name in ("reference.md", "job.md", "extending.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SHELL = [block for block in BLOCKS if block.language in {"sh", "console", ""}]


def words_of(heading: str, document: Path = REFERENCE) -> list[str]:
    return named(section(document, heading))


def run_python(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` on this checkout."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


# ---- code


#: Runs each file in a namespace of its own and prints a line after it.
RUNNER = """
import sys
from pathlib import Path
for name in sys.argv[1:]:
    exec(compile(Path(name).read_text(), name, "exec"), {"__name__": "__main__"})
    print(f"-- end of {name}", flush=True)
"""


def test_every_python_block_runs_and_prints_what_it_says(tmp_path):
    """The blocks of a document run one after another; a block of output is what the one before it printed."""
    expected = []
    names = []
    for document in DOCUMENTS:
        found = {kind: "".join(b.text for b in blocks(document) if b.language == kind) for kind in ("python", "output")}
        if found["python"]:
            names.append(f"{document.stem}.txt")  # as fusion.py it would be imported for our package
            (tmp_path / names[-1]).write_text(found["python"])
            expected += [*without_numbers(found["output"]), f"-- end of {names[-1]}"]
    assert {"README.txt", "job.txt", "reference.txt", "extending.txt", "fusion.txt"} <= set(names)
    done = run_python("-c", RUNNER, *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == expected


def without_numbers(text: str) -> list[str]:
    """Return the lines with a mark for each number: the last digits differ from machine to machine."""
    return [re.sub(r"\d+(\.\d+)?", "#", line) for line in text.splitlines()]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_every_job_json_is_one(block):
    assert JobSpec.parse(json.loads(block.text)).name


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a block in words, program first."""
    found = []
    for part in re.split(r" && |\n", block.text.replace("\\\n", " ")):
        words = shlex.split(part.removeprefix("$ "), comments=True)
        while words and "=" in words[0]:
            words.pop(0)  # a variable for the program
        found += [words] if words else []
    return found


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_can_be_called(block):
    for program, *arguments in commands(block):
        called = Path(program).name
        if called == "unified":
            assert cli.build_parser().parse_args(arguments).command is not None
        elif called.startswith("python") and arguments[0] == "-m":
            module = ROOT / (arguments[1].replace(".", "/") + ".py")
            assert arguments[1] in {"venv", "pytest"} or module.is_file()
        elif called.startswith("python"):
            assert (ROOT / arguments[0]).is_file()
        else:
            assert called == "pip"


def test_there_are_commands_to_check():
    assert sum(words[0] == "unified" for block in SHELL for words in commands(block)) >= 8


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 80


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name != "digits_batch.py"], ids=lambda path: path.name)
def test_every_example_runs(example, tmp_path):
    done = run_python(example, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The README's first command, once it is installed."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run_python(ROOT / "examples" / "digits_batch.py", "digits", folder=folder)


def test_the_first_command_ends_with_the_table_that_the_readme_shows(digits_run):
    folder, done = digits_run
    assert done.returncode == 0, done.stderr
    shown = next(block.text for block in blocks(ROOT / "README.md") if "alice-digits  started" in block.text)
    assert without_numbers(last_table(done.stdout)) == without_numbers(last_table(shown))
    assert (folder / "digits" / "results" / "timeline.png").is_file()


def last_table(text: str) -> str:
    """Return the table at the end of a run without its spaces, without what differs in kind, and the line below it."""
    lines = [line.partition("; all in ")[0] for line in text[text.index("\njob ") :].splitlines()]
    return "\n".join(re.sub(r"\d+ [KM]iB|\d+\.\d+ [KM]iB", "# bytes", " ".join(line.split())) for line in lines)


def test_the_first_two_commands_stand_alone():
    first, second = [block for block in blocks(ROOT / "README.md") if block.language == "sh"][:2]
    assert first.text.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && ")
    assert first.text.endswith(".venv/bin/python examples/digits_batch.py digits\n")
    assert second.text.startswith("python3 -m venv .venv && ")
    assert second.text.endswith(".venv/bin/python -m tests.check\n")
    assert first.text.count("\n") == second.text.count("\n") == 1


def assert_all_laws_pass(command: list[str], folder: Path, num_schedulers: int) -> None:
    command = [sys.executable, "-m", "pytest", *command, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    num_laws = (ROOT / "schedulers" / "testing" / "laws.py").read_text().count("    def test_")
    # all but one are for each of them
    assert f"{num_schedulers * (num_laws - 1) + 1} passed" in done.stdout


def test_the_scheduler_in_the_text_keeps_the_laws(tmp_path):
    """Done as the text says: the first block in a file, the law suite on it from that folder."""
    (tmp_path / "nearest.py").write_text(next(b.text for b in blocks(EXTENDING) if b.language == "python"))
    [line] = [line for b in blocks(EXTENDING) for line in b.text.splitlines() if "-p schedulers.testing" in line]
    assert_all_laws_pass(line.removeprefix("python -m pytest ").split(), tmp_path, num_schedulers=2)


def test_the_example_keeps_the_laws():
    """From the checkout, where the option alone is enough."""
    assert_all_laws_pass(["--scheduler=examples.own_scheduler:Lottery"], ROOT, num_schedulers=1)


# ---- links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    missing = [(str(path), part) for path, part in links(document) if not path.exists()]
    missing += [(path.name, part) for path, part in links(document) if part and part not in anchors(path)]
    assert not missing


# ---- docs/job.md


def test_the_table_of_fields_is_the_json_schema():
    expected = list(job_rows())
    rows = table(section(JOB, "# A job, field by field"))[: len(expected)]
    assert [tuple(row[:3]) for row in rows] == expected
    assert all(row[3] for row in rows)


def torch_of_the_lists() -> str:
    (version,) = re.findall(r"^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


@pytest.mark.skipif(not torch.__version__.startswith(torch_of_the_lists() + "."), reason="the lists are of another PyTorch")
def test_the_lists_of_names_are_pytorchs():
    text = section(JOB, "## Losses, optimizers, schedules, metrics")
    assert f"PyTorch {torch_of_the_lists()}" in text
    listed = {row[0]: re.findall(r"`(\w+)`", row[1]) for row in table(text)}
    assert listed == {
        "`loss`": sorted(components.LOSSES),
        "`optimizer`": sorted(components.OPTIMIZERS),
        "`lr_scheduler`": sorted(components.LR_SCHEDULERS),
        "`metrics`": list(metrics.METRIC_NAMES),
    }


# ---- docs/reference.md


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command, of one with verbs that of each verb."""
    return dict(with_verbs(cli.build_parser(), ""))


def with_verbs(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    verbs = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not verbs:
        yield name, parser
    for verb, own in (pair for choices in verbs for pair in choices.items()):
        yield from with_verbs(own, f"{name} {verb}".strip())


@pytest.mark.parametrize("command", parsers())
def test_the_options_of_every_command_are_in_the_reference_and_no_others(command):
    actions = [action for action in parsers()[command]._actions if action.dest != "help"]
    spelled = [" ".join(filter(None, [*action.option_strings, action.metavar])).replace("...", "") for action in actions]
    assert words_of(f"### unified {command}") == spelled


def test_every_command_is_in_the_reference_and_no_other():
    headings = re.findall(r"^### unified (.+)$", REFERENCE.read_text(), re.MULTILINE)
    assert headings == list(parsers())


def test_the_exit_codes_are_those_of_the_help():
    assert set(words_of("### Exit codes")) == set(re.findall(r"^  (\d+) ", cli.RUN_END, re.MULTILINE))


def test_every_public_name_is_in_the_reference_and_no_other():
    first_table = section(REFERENCE, "## Python").partition("### ")[0]
    assert sorted(named(first_table)) == sorted(unified.__all__)


@pytest.mark.parametrize("name", ["Engine", "Result"])
def test_every_public_member_is_in_the_reference_and_no_other(name):
    kind = getattr(unified, name)
    own = {member for member in vars(kind) if not member.startswith("_")}
    assert sorted(words_of(f"### {name}")) == sorted(own)


def test_the_signatures_in_the_reference_are_those_of_the_code():
    text = " ".join(REFERENCE.read_text().split())
    for function in (unified.train, unified.Engine):
        parameters = inspect.signature(function).parameters.values()
        spelled = [p.name if p.default is p.empty else f"{p.name}={json.dumps(p.default)}" for p in parameters]
        spelled = [
            word.replace("null", "None").replace("false", "False").replace("true", "True").replace("=[]", "=()")
            for word in spelled
        ]
        position = next(i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY)
        spelled.insert(position, "*")
        assert f"{function.__name__}({', '.join(spelled)})" in text


def test_the_table_of_events_is_complete():
    rows = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in table(section(REFERENCE, "## Events"))}
    kinds = {
        name: kind
        for name, kind in vars(events).items()
        if isinstance(kind, type) and issubclass(kind, events.Event) and not kind.__subclasses__()
    }
    assert rows == {name: [field.name for field in fields(kind) if field.name != "at"] for name, kind in kinds.items()}


def test_every_code_of_a_problem_is_in_the_reference_and_no_other():
    sources = "".join(path.read_text() for path in (ROOT / "unified").rglob("*.py"))
    assert sorted(words_of("## Problems")) == sorted(set(re.findall(r"\bE-[A-Z]+\b", sources)))


def test_every_environment_variable_of_ours_is_in_the_reference():
    folders = ("unified", "schedulers", "separator", "benchmarks", "tests")
    sources = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert set(re.findall(r"\bUNIFIED_[A-Z_]+\b", sources)) <= set(words_of("## Environment variables"))


def test_the_fields_of_the_files_of_a_run_are_in_the_reference_and_no_others(digits_run):
    results = digits_run[0] / "digits" / "results"
    result = json.loads((results / "bob-digits" / "result.json").read_text())
    assert words_of("### result.json") == list(result)
    (row, *_) = (results / "bob-digits" / "metrics.jsonl").read_text().splitlines()
    assert set(words_of("### metrics.jsonl")) == set(json.loads(row)) - set(result["job"]["metrics"])
    summary = json.loads((results / "summary.json").read_text())
    assert words_of("### summary.json") == list(summary["run"])
    told = section(REFERENCE, "### summary.json").rpartition("`jobs` holds")[2]
    assert re.findall(r"`(\w+)`", told) == list(summary["jobs"]["bob-digits"])


def test_the_tree_of_files_is_what_a_run_leaves(digits_run):
    results = digits_run[0] / "digits" / "results"
    tree = next(block.text for block in blocks(REFERENCE) if block.text.startswith("DIR/"))
    files = {path.name for path in results.iterdir() if path.is_file()}
    files |= {path.name for path in (results / "bob-digits").iterdir()}
    assert set(re.findall(r"── ([\w.]+\.\w+)", tree)) == files | {"job.log"}


def test_the_schedulers_of_the_readme_are_those_there_are():
    rows = table(section(ROOT / "README.md", "## Schedulers"))
    assert [row[0].strip("`") for row in rows] == list(BUILT_INS)
