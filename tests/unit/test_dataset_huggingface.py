import json
import socket

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.dataset_cases import WRITERS, read, refused, table
from unified.dataset_files import conventions_of, reference
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail whatever opens a connection or asks for an address."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_tensors(tmp_path, name):
    WRITERS[name](tmp_path / name)
    data = load_tensors(read(tmp_path / name, ["a", "b", "flag"], "kind"))
    expected = torch.stack([torch.tensor(table()[c], dtype=torch.float32) for c in ("a", "b", "flag")], dim=1)
    torch.testing.assert_close(data.inputs, expected, rtol=0, atol=0)
    torch.testing.assert_close(data.targets, torch.tensor([1, 0, 0, 1]), rtol=0, atol=0)


def test_equal_rows_are_one_dataset_in_whatever_form(tmp_path):
    references = []
    for name, write in WRITERS.items():
        write(tmp_path / name)
        references.append(read(tmp_path / name, "a", "b"))
    assert len({ref.key for ref in references}) == 1
    assert len({ref.path for ref in references}) == 1


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "folder"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a", torch.tensor([1, 2, 3, 4])),
        ("b", torch.tensor([0.1, 0.2, 0.3, 1e-9])),
        ("flag", torch.tensor([1, 0, 1, 1])),
        ("row", torch.tensor(table()["row"])),
        ("matrix", torch.tensor(table()["matrix"])),
    ],
)
def test_numbers_become_int64_or_float32_in_the_shape_of_their_rows(tmp_path, name, column, expected):
    WRITERS[name](tmp_path / name)
    data = load_tensors(read(tmp_path / name, {"x": column}, column))
    torch.testing.assert_close(data.inputs, {"x": expected}, rtol=0, atol=0)
    torch.testing.assert_close(data.targets, expected, rtol=0, atol=0)


def test_a_conversion_is_made_once(tmp_path):
    WRITERS["t.csv"](tmp_path / "t.csv")
    stamp = read(tmp_path / "t.csv", "a", "b").path.stat()
    assert read(tmp_path / "t.csv", "a", "b").path.stat() == stamp
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    read(tmp_path / "t.csv", "b", "a")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert all(path.suffix == ".safetensors" for path in (tmp_path / "cache").iterdir() if path.is_file())


def images(mode):
    draw = np.random.default_rng(0)
    shape = (5, 7) if mode == "L" else (5, 7, 3)
    return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)]


def image_dataset(pixels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    content = {"image": [Image.fromarray(p) for p in pixels], "label": [0, 1, 1]}
    return datasets.Dataset.from_dict(content, features=features)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["folder", "t.parquet"])
def test_images_become_float32_between_0_and_1_channels_first(tmp_path, mode, name):
    dataset = image_dataset(images(mode))
    (dataset.save_to_disk if name == "folder" else dataset.to_parquet)(tmp_path / name)
    ref = read(tmp_path / name, "image", "label")
    data = load_tensors(ref)
    pixels = torch.from_numpy(np.stack(images(mode))).to(torch.float32) / 255
    expected = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(data.inputs, expected, rtol=0, atol=0)
    assert data.targets.tolist() == [0, 1, 1]
    assert conventions_of(ref).labels == ("b", "a")


def test_images_of_different_sizes_are_refused(tmp_path):
    image_dataset([*images("RGB")[:2], images("RGB")[2][:4]]).save_to_disk(tmp_path / "folder")
    assert "different shapes between rows 2 and 2" in refused(tmp_path / "folder", "image", "label")


def test_images_that_are_only_paths_are_refused(tmp_path):
    Image.fromarray(images("L")[0]).save(tmp_path / "secret.png")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "y": [0]})
    features = datasets.Features({"image": datasets.Image(decode=False), "y": datasets.Value("int64")})
    rows.cast(features).to_parquet(tmp_path / "t.parquet")
    assert "only a path in row 0" in refused(tmp_path / "t.parquet", "image", "y")


def test_a_damaged_image_is_refused(tmp_path):
    features = datasets.Features({"image": datasets.Image(decode=False), "y": datasets.Value("int64")})
    content = {"image": [{"bytes": b"no image", "path": None}], "y": [0]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "t.parquet")
    assert "UnidentifiedImageError" in refused(tmp_path / "t.parquet", "image", "y")


def write_labels(path, labels):
    path.write_text("x,y\n" + "".join(f"1,{label}\n" for label in labels))


def test_test_data_takes_the_label_numbers_of_its_training_data(tmp_path):
    write_labels(tmp_path / "train.csv", ["dog", "ant", "cat"])
    write_labels(tmp_path / "test.csv", ["dog", "cat"])
    train = read(tmp_path / "train.csv", "x", "y")
    assert conventions_of(train).labels == ("ant", "cat", "dog")
    assert load_tensors(train).targets.tolist() == [2, 0, 1]
    assert load_tensors(read(tmp_path / "test.csv", "x", "y", train=train)).targets.tolist() == [2, 1]
    write_labels(tmp_path / "other.csv", ["dog", "emu"])
    assert "also ['emu']" in refused(tmp_path / "other.csv", "x", "y", train=train)


def test_class_labels_in_another_order_are_numbered_as_in_the_training_data(tmp_path):
    image_dataset(images("L")).save_to_disk(tmp_path / "train")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    content = {"image": [Image.fromarray(p) for p in images("L")], "label": ["a", "b", "b"]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "test")
    train = read(tmp_path / "train", "image", "label")
    assert load_tensors(read(tmp_path / "test", "image", "label", train=train)).targets.tolist() == [1, 0, 0]


def test_text_labels_without_any_in_the_training_data_are_refused(tmp_path):
    write_labels(tmp_path / "train.csv", [0, 1])
    write_labels(tmp_path / "test.csv", ["dog", "cat"])
    train = read(tmp_path / "train.csv", "x", "y")
    assert "numbers, as in the training data, got text" in refused(tmp_path / "test.csv", "x", "y", train=train)


@pytest.mark.parametrize(("splits", "taken"), [(["train", "validation", "test"], 2), (["train", "validation"], 1)])
def test_of_a_folder_with_splits_each_field_takes_its_own(tmp_path, splits, taken):
    content = {name: datasets.Dataset.from_dict({"x": [number], "y": [number]}) for number, name in enumerate(splits)}
    datasets.DatasetDict(content).save_to_disk(tmp_path / "folder")
    train = read(tmp_path / "folder", "x", "y")
    assert load_tensors(train).inputs.tolist() == [0]
    assert load_tensors(read(tmp_path / "folder", "x", "y", train=train)).inputs.tolist() == [taken]


def test_a_folder_without_the_split_is_refused(tmp_path):
    content = {"first": datasets.Dataset.from_dict({"x": [1], "y": [1]})}
    datasets.DatasetDict(content).save_to_disk(tmp_path / "folder")
    assert "the splits ['first']" in refused(tmp_path / "folder", "x", "y")


def test_columns_by_number_mean_a_file_without_a_header(tmp_path):
    (tmp_path / "t.csv").write_text("1.5,0\n2.5,1\n")
    data = load_tensors(read(tmp_path / "t.csv", "0", "1"))
    assert (data.inputs.tolist(), data.targets.tolist()) == ([1.5, 2.5], [0, 1])
    (tmp_path / "named.csv").write_text("0,1\n1.5,0\n2.5,1\n")
    assert load_tensors(read(tmp_path / "named.csv", "0", "1")).inputs.tolist() == [1.5, 2.5]
    (tmp_path / "header.csv").write_text("x,y\n1.5,0\n2.5,1\n")
    assert "the header ['x', 'y']" in refused(tmp_path / "header.csv", "0", "1")
    assert "the columns ['0', '1']" in refused(tmp_path / "t.csv", "0", "2")


REFUSALS = {
    "a missing column": ("t.parquet", "nothing", "kind", "the columns ['a', 'b', 'flag'"),
    "lists of different lengths": ("t.parquet", "ragged", "kind", "pad or crop"),
    "text without a tokenizer": ("t.parquet", "text", "kind", "name a tokenizer folder"),
    "arrays to be stacked": ("t.parquet", ["a", "row"], "kind", "got shape (2,)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_columns_without_a_tensor_form_are_refused(tmp_path, case):
    name, inputs, targets, message = REFUSALS[case]
    WRITERS[name](tmp_path / name)
    assert message in refused(tmp_path / name, inputs, targets)


def test_missing_values_are_refused_with_their_row(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n1,0\n,1\n")
    assert "1 missing values, the first in row 1" in refused(tmp_path / "t.csv", "x", "y")
    rows = datasets.Dataset.from_dict({"x": [[1, 2], [3, None]], "y": [0, 1]})
    rows.to_parquet(tmp_path / "t.parquet")
    assert "missing values" in refused(tmp_path / "t.parquet", "x", "y")


DAMAGED = {
    "t.parquet": lambda path: path.write_bytes(b"PAR1 and nothing else PAR1"),
    "t.csv": lambda path: path.write_bytes(b"x,y\n1,2\n1,2,3,4\n"),
    "empty.csv": lambda path: path.touch(),
    "header.csv": lambda path: path.write_text("x,y\n"),
    "latin.csv": lambda path: path.write_bytes(b"x,y\n1,\xe9\xff\n"),
    "t.json": lambda path: path.write_text("{"),
    "number.json": lambda path: path.write_text("5"),
    "empty.jsonl": lambda path: path.touch(),
    "t.xlsx": lambda path: path.touch(),
    "missing.csv": lambda path: None,
    "empty folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_are_refused_and_never_a_bare_error(tmp_path, name):
    DAMAGED[name](tmp_path / name)
    assert refused(tmp_path / name, "x", "y")


def test_a_damaged_folder_is_refused(tmp_path):
    WRITERS["folder"](tmp_path / "folder")
    (arrow,) = (tmp_path / "folder").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert "a whole folder written by save_to_disk" in refused(tmp_path / "folder", "a", "b")
    (tmp_path / "folder" / "state.json").write_text("[]")
    assert "a whole folder written by save_to_disk" in refused(tmp_path / "folder", "a", "b")


def test_a_folder_that_names_data_elsewhere_is_refused(tmp_path):
    WRITERS["folder"](tmp_path / "theirs")
    WRITERS["folder"](tmp_path / "folder")
    state = json.loads((tmp_path / "folder" / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../theirs/data-00000-of-00001.arrow"
    (tmp_path / "folder" / "state.json").write_text(json.dumps(state))
    assert "data files in the folder itself" in refused(tmp_path / "folder", "a", "b")


def test_code_in_a_dataset_folder_is_not_run(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "folder.py").write_text("raise SystemExit('ran')")
    assert "one with code, ['folder.py'], which is never run" in refused(tmp_path / "folder", "x", "y")


def test_a_table_without_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n1,0\n")
    with pytest.raises(InvalidSubmission, match='add "columns"'):
        reference(
            tmp_path / "t.csv",
            columns=None,
            tokenizer=None,
            max_length=None,
            cache_dir=tmp_path / "c",
            job="a",
        )
