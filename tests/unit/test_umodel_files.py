"""Whatever is wrong with a file ends in InvalidSubmission, with what was expected and what came; nothing in it runs."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from unified.errors import InvalidSubmission
from unified.submission.safetensors_part import read_header, read_tensor, write_tensors
from unified.submission.umodel_format import DTYPES, PARTS, STORED_DTYPES
from unified.submission.umodel_read import load_umodel, read_manifest
from unified.submission.umodel_write import export
from unified.validation import first_failed, stage_of

MANIFEST, TRAIN, WEIGHTS = "manifest.json", "graph.train.json", "weights.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4))
    return export(model, torch.randn(4, 1, 5, 5), tmp_path_factory.mktemp("good") / "good.umodel")


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write parts with right hashes, so that only what the test changed is wrong."""
    manifest = json.loads(parts[MANIFEST])
    if isinstance(manifest, dict) and isinstance(manifest.get("parts"), dict):
        for name in manifest["parts"]:
            manifest["parts"][name] = hashlib.sha256(parts.get(name, b"")).hexdigest()
        parts = parts | {MANIFEST: json.dumps(manifest).encode()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def changed(good: Path, path: Path, part: str, change: Callable[[Any], Any]) -> Path:
    """Write ``good`` again with the JSON of one part changed in place, or replaced by what ``change`` returns."""
    parts = parts_of(good)
    record = json.loads(parts[part])
    replacement = change(record)
    record = record if replacement is None else replacement
    return pack(path, parts | {part: json.dumps(record).encode()})


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidSubmission) as caught:
        load_umodel(path, job="mine")
    text = str(caught.value)
    problems = caught.value.problems
    assert all(problem.job == "mine" for problem in problems)
    assert {stage_of(problem.code) for problem in problems} == {first_failed(problems)}, text
    assert all(word in text for word in words), text


def set_node(index: int, **fields: Any) -> Callable[[Any], None]:
    return lambda graph: graph["nodes"][index].update(fields)


def set_tensor(index: int, **fields: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["tensors"][index].update(fields)


X, WEIGHT, MEAN = {"input": "input"}, {"tensor": "0.weight"}, {"tensor": "1.running_mean"}

BAD_NODES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown operator": ({"op": "aten.explode.default"}, "does not exist"),
    "no operator": ({"op": "torch.os.system"}, "not of the form"),
    "dunder": ({"op": "aten.__and__.Tensor", "args": [X, X]}, "Python spelling"),
    "file": ({"op": "aten.from_file.default", "args": ["/etc/passwd"]}, "input or output"),
    "storage": ({"op": "aten.as_strided.default", "args": [X, [1], [1]]}, "plays with storage"),
    "uninitialised": ({"op": "aten.empty.memory_format", "args": [[9]]}, "uninitialised"),
    "data-dependent": ({"op": "aten.nonzero.default", "args": [X]}, "size depends on the data"),
    "steered": ({"op": "aten.item.default", "args": [X]}, "does not return tensors"),
    "in place": ({"op": "aten.relu_.default", "args": [X]}, "writes to its argument"),
    "out": ({"op": "aten.add.out", "args": [X, X], "kwargs": {"out": WEIGHT}}, "writes to its argument"),
    "counts a weight": ({"op": "aten.add_.Tensor", "args": [WEIGHT, 1]}, "an integer to a buffer of integers"),
    "counts a tensor": ({"op": "aten.add_.Tensor", "args": [MEAN, X]}, "an integer to a buffer of integers"),
    "later node": ({"args": [{"node": 5}, WEIGHT]}, "that comes before"),
    "itself": ({"args": [{"node": 0}, WEIGHT]}, "that comes before"),
    "negative node": ({"args": [{"node": -1}, WEIGHT]}, "that comes before"),
    "boolean node": ({"args": [{"node": True}, WEIGHT]}, "that comes before"),
    "unknown tensor": ({"args": [{"tensor": "2.weight"}, WEIGHT]}, "unknown tensor"),
    "unknown input": ({"args": [{"input": "y"}, WEIGHT]}, "unknown input"),
    "unknown constant": ({"args": [{"constant": 0}, WEIGHT]}, "unknown constant"),
    "unhashable name": ({"args": [{"tensor": ["0.weight"]}, WEIGHT]}, "unknown tensor"),
    "unknown reference": ({"args": [{"module": "os"}, WEIGHT]}, "unknown module"),
    "two keys": ({"args": [{"node": 0, "input": "input"}, WEIGHT]}, "one key"),
    "too few": ({"args": [X]}, "with its argument 'weight'"),
    "too many": ({"args": [X] * 20}, "at most 7 arguments"),
    "unknown keyword": ({"kwargs": {"color": 3}}, "a further one, 'color'"),
    "given twice": ({"kwargs": {"input": X}}, "a further one, 'input'"),
    "text": ({"args": [X, "weights"]}, "expected Tensor as argument 'weight'"),
    "huge integer": ({"args": [X, WEIGHT, None, [1 << 63, 1]]}, "expected int"),
    "object": ({"args": [X, WEIGHT, None, [{"dtype": "float32"}, 1]]}, "expected int"),
    "unknown dtype": ({"op": "aten.to.dtype", "args": [X, {"dtype": "load"}]}, "unknown dtype"),
    "device": ({"op": "aten.zeros.default", "args": [[1]], "kwargs": {"device": "cuda:1"}}, "expected Device"),
    "'pin_memory'": ({"op": "aten.zeros.default", "args": [[1]], "kwargs": {"pin_memory": True}}, "'pin_memory'"),
    "generator": ({"op": "aten.rand.generator", "args": [[1]], "kwargs": {"generator": X}}, "expected Generator"),
    "statistics": ({"op": "aten.batch_norm.default", "args": [X, None, None, WEIGHT, None, True, 0, 0, True]}, "not a buffer"),
    "autocast": ({"autocast": {"device_type": None, "dtype": "float1", "enabled": True}}, "to 'float1'"),
    "unknown field": ({"code": "import os"}, "Unexpected keyword argument"),
    "wrong type": ({"op": 7}, "valid string"),
    "arguments": ({"args": {"input": "input"}}, "valid array"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NODES)
def test_bad_nodes(name, good, tmp_path):
    fields, word = BAD_NODES[name]
    refused(changed(good, tmp_path / "bad.umodel", TRAIN, set_node(0, **fields)), "graph.train.json", word)


BAD_GRAPHS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda graph: [graph], "object"),
    "no nodes": (lambda graph: {"output": X}, "nodes"),
    "too many nodes": (lambda graph: graph.update(nodes=graph["nodes"] * 5000), "20000"),
    "write to a weight": (lambda graph: graph.update(writes=[["0.weight", X]]), "a buffer to write to"),
    "write to nothing": (lambda graph: graph.update(writes=[["forward", X]]), "a buffer to write to"),
    "write of nothing": (
        lambda graph: graph.update(writes=[["1.running_mean", {"node": 99}]]),
        "that comes before",
    ),
    "output of nothing": (lambda graph: graph.update(output={"node": 99}), "that comes before"),
    "output of a type": (lambda graph: graph.update(output={"dtype": "float32"}), "expected a tensor"),
    "strange output": (lambda graph: graph.update(output={"set": [X]}), "unknown set"),
    "output entry": (lambda graph: graph.update(output={"dict": [["a"]]}), "a key and a value"),
    "output items": (lambda graph: graph.update(output={"tuple": X}), "a list of values"),
    "deep output": (
        lambda graph: graph.update(output=json.loads('{"list":[' * 12 + "1" + "]}" * 12)),
        "nested at most",
    ),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_bad_graphs(name, good, tmp_path):
    change, word = BAD_GRAPHS[name]
    refused(changed(good, tmp_path / "bad.umodel", TRAIN, change), "graph.train.json", word)


BAD_MANIFESTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda manifest: [manifest], "object"),
    "version": (lambda manifest: manifest.update(version=2), "a newer unified"),
    "tensors": (lambda manifest: manifest.update(tensors={"a": 1}), "tensors"),
    "no inputs": (lambda manifest: manifest.update(inputs=[]), "at least one input"),
    "two of a name": (lambda manifest: manifest.update(inputs=manifest["inputs"] * 2), "one that is taken"),
    "input name": (lambda manifest: manifest["inputs"][0].update(name="a b"), "only letters"),
    "input type": (lambda manifest: manifest["inputs"][0].update(dtype="complex64"), "a type of"),
    "missing hash": (lambda manifest: manifest["parts"].pop(TRAIN) and None, "every other part"),
    "type": (set_tensor(0, dtype="complex64"), "a type of"),
    "rank": (set_tensor(0, shape=[1] * 13, order=list(range(13))), "at most 12"),
    "negative": (set_tensor(0, shape=[-1, 1, 3, 3]), "greater than or equal to 0"),
    "huge shape": (set_tensor(0, shape=[1 << 62, 1 << 62, 1, 1]), "2^124 elements"),
    "boolean size": (set_tensor(0, shape=[True, 1, 3, 3]), "valid integer"),
    "order": (set_tensor(0, order=[0, 0, 1, 2]), "order of all its dimensions"),
    "trained integers": (set_tensor(6, requires_grad=True), "floating"),
    "constant": (lambda manifest: manifest.update(constants=[["float32", [2]]]), "other names"),
    "other tensors": (set_tensor(0, name="0.weights"), "other names"),
    "unknown field": (lambda manifest: manifest.update(code="import os"), "Unexpected"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifests(name, good, tmp_path):
    change, word = BAD_MANIFESTS[name]
    refused(changed(good, tmp_path / "bad.umodel", MANIFEST, change), word)


BAD_JSON = {
    "not JSON": b"{",
    "NaN": b'{"nodes": [], "output": NaN}',
    "twice": b'{"nodes": [], "nodes": [], "output": null}',
    "digits": b'{"nodes": [], "output": ' + b"9" * 5000 + b"}",
    "2^70": b'{"nodes": [], "output": %d}' % 2**70,
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "not UTF-8": b'{"nodes": [], "output": "\xff"}',
    "empty": b"",
}


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("part", [MANIFEST, TRAIN])
def test_bad_json(name, part, good, tmp_path):
    if part == MANIFEST:
        parts = parts_of(good) | {MANIFEST: BAD_JSON[name]}
        with zipfile.ZipFile(tmp_path / "bad.umodel", "w") as archive:
            for each, content in parts.items():
                archive.writestr(each, content)
    else:
        pack(tmp_path / "bad.umodel", parts_of(good) | {part: BAD_JSON[name]})
    refused(tmp_path / "bad.umodel", part)


def header(record: Any) -> bytes:
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return len(text).to_bytes(8, "little") + text


def weights_of(good: Path) -> tuple[dict[str, Any], bytes]:
    content = parts_of(good)[WEIGHTS]
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


BAD_WEIGHTS: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "empty": lambda record, content: b"",
    "header of 2^62 bytes": lambda record, content: (1 << 62).to_bytes(8, "little") + content,
    "no object": lambda record, content: header([1]) + content,
    "no tensors": lambda record, content: header({}),
    "entry": lambda record, content: header(record | {"0.weight": 3}) + content,
    "type": lambda record, content: header(record | {"0.weight": record["0.weight"] | {"dtype": "I64"}}) + content,
    "shape": lambda record, content: header(record | {"0.weight": record["0.weight"] | {"shape": [2]}}) + content,
    "overlap": lambda record, content: header(record | {"1.weight": record["1.bias"]}) + content,
    "offsets": lambda record, content: header(record | {"0.weight": record["0.weight"] | {"data_offsets": [0.5, 3]}}) + content,
    "beyond": lambda record, content: header(record | {"0.weight": record["0.weight"] | {"data_offsets": [-72, 0]}}) + content,
    "short": lambda record, content: header(record) + content[:-1],
    "long": lambda record, content: header(record) + content + b"x",
    "infinite": lambda record, content: header(record) + b"\x00\x00\x80\x7f" + content[4:],
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name, good, tmp_path):
    refused(pack(tmp_path / "bad.umodel", parts_of(good) | {WEIGHTS: BAD_WEIGHTS[name](*weights_of(good))}))


def test_a_damaged_part_does_not_match_its_checksum(good, tmp_path):
    content = good.read_bytes()
    place = content.index(b"aten.flatten")
    (tmp_path / "bad.umodel").write_bytes(content[:place] + b"aten.squeeze" + content[place + 12 :])
    refused(tmp_path / "bad.umodel", "checksum")


def test_zips_that_are_not_laid_out_as_ours(good, tmp_path):
    parts = parts_of(good)
    refused(pack(tmp_path / "a.umodel", parts, zipfile.ZIP_DEFLATED), "a compressed or encrypted one")
    refused(pack(tmp_path / "b.umodel", parts | {"../evil": b"x"}), "4 parts", "5")
    refused(pack(tmp_path / "c.umodel", {name: parts[name] for name in PARTS[:3]}), "4 parts", "3")
    with (
        zipfile.ZipFile(pack(tmp_path / "d.umodel", parts), "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr(TRAIN, parts[TRAIN])
    refused(tmp_path / "d.umodel", "4 parts")
    with zipfile.ZipFile(tmp_path / "e.umodel", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        archive.getinfo(TRAIN).header_offset = archive.getinfo(WEIGHTS).header_offset
    refused(tmp_path / "e.umodel")


def test_the_longer_form_of_zips_over_2_gib_is_read(good, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # as if the parts were that large
    path = pack(tmp_path / "long.umodel", parts_of(good))
    content = path.read_bytes()
    assert b"PK\x06\x06" in content
    assert list(load_umodel(path).state_dict()) == list(load_umodel(good).state_dict())
    place = content.index(b"PK\x06\x06")
    for wrong in (
        content[: place + 4] + b"\x2d" + content[place + 5 :],
        content[:place] + b"PK\x06\x05" + content[place + 4 :],
    ):
        path.write_bytes(wrong)
        refused(path, "longer form")


def test_files_that_are_none(tmp_path):
    refused(tmp_path / "missing.umodel", "No such file")
    (tmp_path / "empty.umodel").touch()
    refused(tmp_path / "empty.umodel", "0 bytes")
    (tmp_path / "text.umodel").write_text("hello")
    refused(tmp_path / "text.umodel", "a zip archive")
    refused(tmp_path, "a readable file")
    with pytest.raises(InvalidSubmission):
        read_manifest(tmp_path / "text.umodel")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_truncated_or_garbled_files_never_end_otherwise(good, tmp_path_factory, data):
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("garbled") / "bad.umodel"
    path.write_bytes(content)
    try:
        loaded = load_umodel(path)
    except InvalidSubmission:
        return
    expected = load_umodel(good).state_dict()  # only what does not matter was hit, such as a date
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
    | st.sampled_from([X, WEIGHT, MEAN, {"node": 0}, {"float": "nan"}, {"dtype": "int8"}, {"device": "model"}]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "tensor", "dict", "op"]), inner, max_size=2)
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_records_with_any_value_anywhere_never_end_otherwise(good, tmp_path_factory, data):
    part = data.draw(st.sampled_from([MANIFEST, TRAIN]))

    def change(record: Any) -> None:
        while True:
            keys = list(record) if isinstance(record, dict) else list(range(len(record)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(record[key], (dict, list)) and record[key]) or data.draw(st.integers(0, 3)) == 0:
                record[key] = data.draw(json_values)
                return
            record = record[key]

    path = changed(good, tmp_path_factory.mktemp("records") / "bad.umodel", part, change)
    try:
        loaded = load_umodel(path)
    except InvalidSubmission:
        return
    assert isinstance(loaded, nn.Module)


@settings(max_examples=60, deadline=None)
@example(shape=(2, 3, 4, 5), dtype="float32", shuffle=2)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(STORED_DTYPES)),
    shuffle=st.integers(0, 23),
)
def test_tensors_are_read_as_they_were_written(shape, dtype, shuffle):
    generator = torch.Generator().manual_seed(shuffle)
    order = tuple(torch.randperm(len(shape), generator=generator).tolist())
    inverse = [order.index(dim) for dim in range(len(order))]
    flat = torch.randint(0, 256, (math.prod(shape) * DTYPES[dtype].itemsize,), dtype=torch.uint8, generator=generator)
    tensor = (flat % 2 if dtype == "bool" else flat).view(DTYPES[dtype]).view([shape[dim] for dim in order]).permute(inverse)
    pieces: list[bytes] = []
    write_tensors({"first": torch.ones(3), "it": tensor}, lambda piece: pieces.append(bytes(piece)))
    part = memoryview(bytearray(b"".join(pieces)))
    entries = read_header(part, {"first": ("float32", (3,)), "it": (dtype, shape)})
    got = read_tensor(part, entries["it"], order)
    assert got.shape == shape
    assert got.dtype == tensor.dtype
    assert got.stride() == tensor.stride() or 0 in shape or 1 in shape
    assert torch.equal(got.contiguous().flatten().view(torch.uint8), tensor.contiguous().flatten().view(torch.uint8))
