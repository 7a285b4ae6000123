import json
import os
import pickle
import shutil
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from unified.dataset_files import reference, reference_tensors
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission

X, Y = torch.arange(24.0).reshape(6, 4), torch.arange(6)


def refer(path, cache_dir, **changes):
    settings = {"columns": None, "tokenizer": None, "max_length": None, "job": "digits", **changes}
    return reference(path, cache_dir=cache_dir, **settings)


def refused(path, cache_dir, **changes):
    """The problems of a file that must not be accepted."""
    with pytest.raises(InvalidSubmission) as caught:
        refer(path, cache_dir, **changes)
    assert all(p.job == "digits" and p.field.startswith("data.") and p.remedy for p in caught.value.problems)
    return caught.value.problems


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_equal_tensors_are_one_dataset_whatever_the_name_container_and_layout(tmp_path, cache):
    torch.save((X, Y), tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "copy.pth")
    torch.save({"targets": Y, "inputs": X}, tmp_path / "another name.pt")
    torch.save((X, Y), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save((X.t().contiguous().t(), Y), tmp_path / "columns-first.pt")
    torch.save((torch.cat([X, X])[:6], torch.nn.Parameter(Y.double(), False).long()), tmp_path / "part.pt")
    save_file({"inputs": X, "targets": Y}, tmp_path / "b.safetensors")
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) == 7
    references = [refer(path, cache) for path in sorted(files)]
    assert len({ref.key for ref in references}) == 1
    assert len({ref.path for ref in references}) == 1, "all workers should map one file, to share its pages"
    assert [ref.source for ref in references] == [str(path) for path in sorted(files)]
    assert {(ref.num_samples, ref.nbytes) for ref in references} == {(6, 24 * 4 + 6 * 8)}


def test_any_difference_in_content_is_another_dataset(tmp_path, cache):
    changed = X.clone()
    changed[5, 3] += 1
    contents = [
        (X, Y),
        (changed, Y),
        (X.double(), Y),
        (X.to(torch.int32), Y),
        (X.reshape(6, 2, 2), Y),
        (X[:5], Y[:5]),
        ({"inputs": X}, Y),
        ({"x": X}, Y),
        ({"x": X, "y": X}, Y),
        ({"y": X, "x": X}, Y),
    ]
    keys = set()
    for number, content in enumerate(contents):
        torch.save(content, tmp_path / f"{number}.pt")
        keys.add(refer(tmp_path / f"{number}.pt", cache).key)
    assert len(keys) == len(contents)


def test_a_file_named_again_is_not_read_again_until_it_changes(tmp_path, cache):
    torch.save((X, Y), tmp_path / "a.pt")
    first = refer(tmp_path / "a.pt", cache)
    (entry,) = (cache / "known").glob("tensors-*.json")
    content = json.loads(entry.read_text())
    content["fact"]["key"] = "as remembered"
    entry.write_text(json.dumps(content))
    assert refer(tmp_path / "a.pt", cache).key == "as remembered"
    times = (tmp_path / "a.pt").stat().st_atime_ns, (tmp_path / "a.pt").stat().st_mtime_ns
    torch.save((X + 1, Y), tmp_path / "a.pt")
    os.utime(tmp_path / "a.pt", ns=times)
    assert refer(tmp_path / "a.pt", cache).key not in ("as remembered", first.key)


def test_a_damaged_memory_is_found_out_anew(tmp_path, cache):
    torch.save((X, Y), tmp_path / "a.pt")
    first = refer(tmp_path / "a.pt", cache)
    for entry in (cache / "known").iterdir():
        entry.write_text("{")
    assert refer(tmp_path / "a.pt", cache) == first


def test_a_first_file_that_is_gone_gives_way_to_the_next(tmp_path, cache):
    torch.save((X, Y), tmp_path / "a.pt")
    refer(tmp_path / "a.pt", cache)
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    (tmp_path / "a.pt").unlink()
    assert refer(tmp_path / "b.pt", cache).path == tmp_path / "b.pt"


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_several_inputs_keep_their_names(tmp_path, cache, name):
    inputs = {"mask": X > 3, "tokens": X.long()}
    if name == "a.pt":
        torch.save((inputs, Y), tmp_path / name)
    else:
        save_file({**{f"inputs.{k}": v for k, v in inputs.items()}, "targets": Y}, tmp_path / name)
    data = load_tensors(refer(tmp_path / name, cache))
    assert list(data.inputs) == ["mask", "tokens"]
    torch.testing.assert_close(data.inputs, inputs, rtol=0, atol=0)


def test_tensors_of_a_caller_are_written_once_and_come_back_as_they_were(tmp_path, cache):
    inputs = {"z": X.t().contiguous().t(), "a": X[2:5].repeat(2, 1)}
    ref = reference_tensors(inputs, Y, source="data.train", cache_dir=cache, job="digits")
    stamp = ref.path.stat()
    again = reference_tensors(inputs, Y.clone(), source="data.train", cache_dir=cache, job="digits")
    assert again == ref
    assert ref.path.stat() == stamp
    data = load_tensors(ref)
    assert list(data.inputs) == ["z", "a"]
    torch.testing.assert_close(data.inputs, inputs, rtol=0, atol=0)
    torch.save((inputs, Y), tmp_path / "same.pt")
    assert refer(tmp_path / "same.pt", cache).key == ref.key


def test_inputs_that_are_also_the_targets_can_be_written(cache):
    x = torch.randn(4, 3, requires_grad=True)
    data = load_tensors(reference_tensors(x, x, source="data.train", cache_dir=cache, job="auto"))
    torch.testing.assert_close(data.inputs, data.targets, rtol=0, atol=0)
    assert not list(cache.glob("*.partial"))


class Shell:
    def __reduce__(self):
        return os.system, ("touch ran",)


MALFORMED = {
    "one tensor": (X, "value of type Tensor"),
    "three": ((X, Y, Y), "tuple of 3"),
    "other keys": ({"x": X, "targets": Y}, "keys ['x', 'targets']"),
    "an extra key": ({"inputs": X, "targets": Y, "extra": Y}, "'extra'"),
    "numbers": (([1.0], [2]), "list of 1"),
    "no inputs": (({}, Y), "a dict with the keys []"),
    "nested": (({"a": {"b": X}}, Y), "keys ['b']"),
    "unequal lengths": ((X[:5], Y), "inputs has 5, targets has 6"),
    "one input too short": (({"a": X, "b": X[:2]}, Y), "inputs.b has 2"),
    "nothing": ((X[:0], Y[:0]), "0 samples"),
    "a single number": ((X, torch.tensor(1)), "single number"),
    "complex": ((X.to(torch.complex64), Y), "complex64"),
    "sparse": ((X.to_sparse(), Y), "sparse_coo"),
    "meta": ((X.to("meta"), Y), "device meta"),
    "stride 0": ((torch.zeros(1).expand(10**12), torch.zeros(1).expand(10**12)), "repeats elements"),
    "overlapping": ((torch.arange(9.0).as_strided((6, 4), (1, 1)), Y), "repeats elements"),
    "a NaN": ((X.masked_fill(X == 14, float("nan")), Y), "first in sample 3"),
    "an infinity": ((X, Y / 0), "infinity"),
    "code": (Shell(), "UnpicklingError"),
    "code inside": ((X, Shell()), "UnpicklingError"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_of_anything_else_is_refused_with_what_it_holds(tmp_path, cache, case, is_zip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, given = MALFORMED[case]
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    problems = refused(tmp_path / "a.pt", cache)
    assert any(given in p.given for p in problems), problems
    assert not (tmp_path / "ran").exists()


def test_everything_wrong_with_a_file_is_told_at_once(tmp_path, cache):
    torch.save((X.to(torch.complex64), torch.tensor(1)), tmp_path / "a.pt")
    assert [p.field for p in refused(tmp_path / "a.pt", cache)] == [
        "data.train: inputs",
        "data.train: targets",
    ]


def test_test_data_is_blamed_by_its_own_field(tmp_path, cache):
    torch.save((X, Y), tmp_path / "a.pt")
    train = refer(tmp_path / "a.pt", cache)
    (problem,) = refused(tmp_path / "b.pt", cache, train=train)
    assert problem.field == "data.test"


def compressed(path):
    torch.save((X, Y), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def truncated(path):
    torch.save((X, Y), path)
    path.write_bytes(path.read_bytes()[:-200])


def scripted(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for writing, yet such files are about
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)


DAMAGED = {
    "compressed": ("a.pt", compressed),
    "truncated": ("a.pt", truncated),
    "empty": ("a.pt", lambda path: path.touch()),
    "random bytes": ("a.pt", lambda path: path.write_bytes(bytes(range(256)))),
    "a zip of something else": ("a.pt", lambda path: zipfile.ZipFile(path, "w").close()),
    "a pickle": ("a.pt", lambda path: path.write_bytes(pickle.dumps(Shell(), protocol=2))),
    "a module": ("a.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path)),
    "a script": ("a.pt", scripted),
    "text as safetensors": ("a.safetensors", lambda path: path.write_text("tensors")),
    "a huge header": ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 7 + b"\x3f{}")),
    "no targets": ("a.safetensors", lambda path: save_file({"inputs": X}, path)),
    "no inputs": ("a.safetensors", lambda path: save_file({"targets": X}, path)),
    "both kinds of inputs": (
        "a.safetensors",
        lambda path: save_file({"inputs": X, "inputs.a": X + 1, "targets": Y}, path),
    ),
    "another tensor": (
        "a.safetensors",
        lambda path: save_file({"inputs": X, "y": Y + 1, "targets": Y}, path),
    ),
    "float8": (
        "a.safetensors",
        lambda path: save_file({"inputs": X.to(torch.float8_e4m3fn), "targets": Y}, path),
    ),
    "unknown kind": ("a.npz", lambda path: path.touch()),
    "no such file": ("a.pt", lambda path: None),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_and_never_a_bare_error(tmp_path, cache, case):
    name, write = DAMAGED[case]
    write(tmp_path / name)
    assert refused(tmp_path / name, cache)
