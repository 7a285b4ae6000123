import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unified
from schedulers import registry
from unified import cli
from unified.errors import DoesNotFitError, InvalidSubmission, Problem

COMMANDS = ("run", "inspect", "keygen", "sign", "simulate", "variants", "schedulers", "version")


def options(*arguments):
    return cli.build_parser().parse_args(arguments)


def help_of(*command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_help_ends_with_an_example_that_parses(command, capsys):
    *_, title, example = help_of(*command, capsys=capsys).rstrip().splitlines()
    assert title == "example:"
    program, *arguments = example.split()
    assert program == "unified"
    assert cli.build_parser().parse_args(arguments).command is not None


VERBS_OF_VARIANTS = ("build", "select", "figures")


@pytest.mark.parametrize("verb", VERBS_OF_VARIANTS)
def test_the_help_of_every_verb_of_variants_ends_with_an_example_that_parses(verb, capsys):
    *_, title, example = help_of("variants", verb, capsys=capsys).rstrip().splitlines()
    assert title == "example:"
    assert options(*example.split()[1:]).command is not None


def test_the_list_of_commands_is_complete(capsys):
    text = help_of(capsys=capsys)
    assert all(f"\n    {name}" in text for name in COMMANDS)


def test_help_of_run_tells_every_option_and_exit_code(capsys):
    text = help_of("run", capsys=capsys)
    names = "--out --scheduler --slots --threads --device --trust --resume --dry-run --json"
    assert all(name in text for name in names.split())
    assert all(f"\n  {code:<5}" in text for code in (0, 1, 2, 3, 130))


def test_options_of_run_are_read():
    line = "run a b --out o --scheduler sjf:length=epochs --slots 3 --threads 2 --device cpu --trust --resume --json"
    read = options(*line.split())
    assert read.folders == [Path("a"), Path("b")]
    assert (read.out, read.scheduler, read.slots, read.threads) == (Path("o"), "sjf:length=epochs", 3, 2)
    assert (read.device, read.trust, read.resume, read.json, read.dry_run) == ("cpu", True, True, True, False)


def test_options_of_run_have_defaults():
    read = options("run", "a")
    assert (read.out, read.scheduler, read.slots, read.threads, read.device) == (
        None,
        "default",
        "auto",
        None,
        "auto",
    )
    assert not any((read.trust, read.resume, read.json, read.dry_run))


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "²", ""])
@pytest.mark.parametrize("option", ["--slots", "--threads"])
def test_a_count_that_is_none_is_a_usage_error(option, wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        options("run", "a", "--out", "o", f"{option}={wrong}")
    assert exit_.value.code == 2
    assert f"expected a whole number from 1, got {wrong!r}" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7d", 604800)])
def test_a_signature_lasts_as_long_as_is_said(text, seconds):
    read = options("sign", "job", "--key", "k", "--queue", "lab", "--expires", text)
    assert (read.folder, read.key, read.queue, read.expires) == (Path("job"), Path("k"), "lab", seconds)
    assert options("sign", "job", "--key", "k", "--queue", "lab").expires == 604800


@pytest.mark.parametrize("wrong", ["7", "7w", "d", "-1d", "nanh", "0s", "1e9d", ""])
def test_a_duration_that_is_none_is_a_usage_error(wrong, capsys):
    with pytest.raises(SystemExit):
        options("sign", "job", "--key", "k", "--queue", "lab", "--expires", wrong)
    assert "expected" in capsys.readouterr().err


def test_run_without_out_says_what_is_missing(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", "jobs"])
    assert exit_.value.code == 2
    assert "--out DIR is needed" in capsys.readouterr().err


def test_schedulers_are_listed_with_their_help_and_what_they_decide_by(capsys):
    assert cli.main(["schedulers"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(registry.available())
    assert registry.BUILT_INS["fcfs"][1] in lines[0]
    needs = {line.split()[0]: line for line in lines}
    assert needs["srtf"].endswith("step_seconds")
    assert needs["fair"].endswith("user_shares, weight, those of the inner one")


def test_version_names_what_computes(capsys):
    assert cli.main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"unified {unified.__version__}, torch ")
    assert out.count("\n") == 1


def problem(job):
    return Problem(code="E-FIELD", job=job, field="epochs", expected="an integer", given="'3'\nor so", remedy="write 3")


def fail_with(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            InvalidSubmission([problem("a"), problem("b")]),
            [
                "unified: [E-FIELD] job 'a': epochs: expected an integer, got '3' or so; write 3",
                "unified: [E-FIELD] job 'b': epochs: expected an integer, got '3' or so; write 3",
            ],
        ),
        (DoesNotFitError("too big; lower batch_size"), ["unified: too big; lower batch_size"]),
        (PermissionError(13, "Permission denied", "/out"), ["unified: Permission denied: /out"]),
        (
            ValueError("broken\ninside"),
            ["unified: internal error, please report: ValueError: broken inside (UNIFIED_DEBUG=1 shows where)"],
        ),
    ],
)
def test_what_goes_wrong_is_a_line_each_and_exit_1(error, lines, capsys):
    assert cli.guarded(fail_with(error)) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_an_interrupt_is_a_line_and_exit_130(capsys):
    assert cli.guarded(fail_with(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "unified: interrupted\n"


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("UNIFIED_DEBUG", "1")
    with pytest.raises(DoesNotFitError):
        cli.guarded(fail_with(DoesNotFitError("too big")))


def in_process(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    environment.pop("UNIFIED_DEBUG", None)
    return subprocess.run(
        [sys.executable, "-m", "unified", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_scheduler_nobody_knows_is_one_line(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    done = in_process("run", str(tmp_path), "--out", str(tmp_path / "out"), "--scheduler", "sfj")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("unified: no scheduler is called 'sfj'; did you mean 'sjf'?")


def test_a_folder_that_is_not_there_is_one_line_or_json(tmp_path):
    missing = str(tmp_path / "nowhere")
    done = in_process("inspect", missing)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("unified: [E-FOLDER] job 'nowhere': ")
    done = in_process("inspect", missing, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["problems"][0]["code"] == "E-FOLDER"


def test_every_folder_without_a_job_is_told_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    done = in_process("run", str(tmp_path / "empty"), str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert "job 'empty'" in first
    assert "job 'nowhere'" in second
    assert not (tmp_path / "out").exists()


def test_the_command_line_starts_without_torch_and_what_it_does_not_need():
    script = """
import sys
from unified import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "numpy", "matplotlib", "pydantic", "rich", "datasets", "transformers"} & set(sys.modules)
assert not heavy, heavy
import unified.run_command, unified.inspect_command
heavy = {"torch", "numpy", "matplotlib", "datasets", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["schedulers"]])
def test_nobody_reading_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        command = [sys.executable, "-m", "unified", *arguments]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
