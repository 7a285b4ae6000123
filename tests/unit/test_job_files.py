import json
import os
import pickle
import subprocess
import sys

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.jobs import LENET, changed
from unified.errors import InvalidSubmission
from unified.job import JobSpec, path_problems
from unified.metrics import METRIC_NAMES


def test_reading_a_file_is_parsing_its_content(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(LENET))
    assert JobSpec.read(path) == JobSpec.read(str(path)) == JobSpec.parse(LENET)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1, column 1"),
        (b"{'name': 3}", "line 1, column 2"),
        (b'{"name": "a",\n "epochs": }', "line 2, column 12"),
        (b"[" * 100_000, "32 levels"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "32 levels"),
        (b'{"lr": NaN}', "got NaN"),
        (b'{"lr": -Infinity}', "got -Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "at most 19 digits"),
        (b'{"name": "a", "name": "b"}', "'name' more than once"),
        (b'{"name": "\\ud800"}', "Unicode text"),
        (b'{"\\udfff": 1}', "Unicode text"),
        (b'{"name": "\xff"}', "byte 0xff at 10"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b" " * (16 * 2**20 + 1), "16777216 bytes"),
        (b"[]", "expected an object, got []"),
        (b"3", "expected an object, got 3"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_what_is_not_a_strict_json_object_is_told(tmp_path, content, told):
    folder = tmp_path / "alices"
    folder.mkdir()
    (folder / "job.json").write_bytes(content)
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec.read(folder / "job.json")
    (problem,) = caught.value.problems
    assert told in str(problem)
    assert (problem.job, problem.field) == ("alices", "job.json")
    assert problem.code == ("E-TYPE" if "object" in told else "E-JSON")


def test_faults_of_json_are_told_at_once(tmp_path):
    path = tmp_path / "job.json"
    path.write_text('{"a": NaN, "a": 1, "b": [Infinity, 99999999999999999999]}')
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec.read(path)
    assert len(caught.value.problems) == 4


def test_a_number_too_large_for_a_float_is_told_with_its_field(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(LENET).replace('"lr": 0.01', '"lr": 1e999'))
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec.read(path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.expected) == ("E-VALUE", "optimizer.lr", "a finite number")


def test_a_file_that_is_missing_a_folder_or_a_pipe_is_told(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name, given_instead in (("none", "No such file"), ("folder", "a folder"), ("pipe", "something else")):
        with pytest.raises(InvalidSubmission, match=given_instead) as caught:
            JobSpec.read(tmp_path / name)
        assert [problem.code for problem in caught.value.problems] == ["E-JSON"]


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0dN1eE-. \n', max_size=60).map(str.encode))
def test_random_bytes_never_end_in_another_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("job") / "job.json"
    path.write_bytes(content)
    with pytest.raises(InvalidSubmission):
        JobSpec.read(path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from([*JobSpec.model_fields]), value=ANY_JSON)
def test_any_json_in_any_field_is_a_job_or_is_refused(field, value):
    try:
        job = JobSpec.parse(changed(**{field: value}))
    except InvalidSubmission as error:
        assert str(error)  # noqa: PT017 - either way is right; every message can be written
    else:
        assert JobSpec.parse(job.to_json()) == job


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a.pt",
        "a/../../b.pt",
        "a/..",
        "C:\\a.pt",
        "C:a.pt",
        "\\a",
        "..\\a",
        "//host/a",
        "\\\\h\\a",
    ],
)
def test_paths_that_lead_out_of_the_folder_are_told(path):
    data = {"train": path, "test": path, "columns": {"inputs": "x", "targets": "y"}, "tokenizer": path}
    found = path_problems(JobSpec.parse(changed(model=path, data=data)))
    assert [problem.field for problem in found] == ["model", "data.train", "data.test", "data.tokenizer"]
    assert {(problem.code, problem.job) for problem in found} == {("E-PATH", "lenet-fashion")}


@pytest.mark.parametrize("path", ["a.pt", "./a.pt", "data/train..pt", "..a", "~", "a b/ü.pt"])
def test_paths_inside_the_folder_are_fine(path):
    assert path_problems(JobSpec.parse(changed(model=path))) == []


def run_without_torch(code, *arguments):
    """Run code in a fresh interpreter in which importing torch is an error."""
    blocked = "import sys; sys.modules['torch'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pickled_job_is_read_without_checks_and_without_torch(tmp_path):
    job = JobSpec.parse(LENET)
    for module in (pickle, cloudpickle):
        path = tmp_path / "job"
        path.write_bytes(module.dumps(job))
        code = "import pickle; print(pickle.load(open(sys.argv[1], 'rb')).to_json())"
        assert run_without_torch(code, str(path)).strip() == str(job.to_json())


def test_states_schema_and_metric_names_need_no_torch():
    code = (
        "import unified.job, unified.metrics, json; unified.job.JobSpec.json_schema();"
        "print(json.dumps(unified.metrics.METRIC_NAMES))"
    )
    assert json.loads(run_without_torch(code)) == list(METRIC_NAMES)
