"""Each archive that an attacker would try is refused with the code of its stage; nothing in it runs, and the process lives."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hostile.archives import EVAL, MANIFEST, TRAIN, WEIGHTS, Change, Parts, marker, pack, tiny
from tests.zoo import LSTMClassifier, lenet
from unified.errors import InvalidSubmission
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import export

X = {"input": "x"}
WEIGHT, MEAN, COUNT = {"tensor": "one.weight"}, {"tensor": "norm.running_mean"}, {"tensor": "norm.num_batches_tracked"}


def node(op: str, *args: Any, **fields: Any) -> Change:
    """Put one more node before the first one, to which all others' references still fit once they are counted up."""

    def change(parts: Parts) -> None:
        shifted = json.loads(json.dumps(parts.train), object_hook=_count_up)
        parts.train.update(shifted)
        parts.train["nodes"].insert(0, {"op": op, "args": list(args), **fields})

    return change


def _count_up(record: dict[str, Any]) -> dict[str, Any]:
    return {"node": record["node"] + 1} if record.keys() == {"node"} else record


def tensor(index: int, **fields: Any) -> Change:
    return lambda parts: parts.manifest["tensors"][index].update(fields)


def renamed(new: str) -> Change:
    return lambda parts: parts.rename("two.bias", new)


def entry(name: str, **fields: Any) -> Change:
    return lambda parts: parts.header[name].update(fields)


def raw(part: str, content: bytes) -> Change:
    return lambda parts: parts.raw.update({part: content})


def train(**fields: Any) -> Change:
    return lambda parts: parts.train.update(fields)


def manifest(**fields: Any) -> Change:
    return lambda parts: parts.manifest.update(fields)


def both(parts: Parts) -> None:
    for graph in (parts.train, parts.eval):
        graph["nodes"][0]["op"] = "aten.nonzero.default"
        graph["nodes"][0]["args"] = [X]


def values(content: bytes) -> Change:
    def change(parts: Parts) -> None:
        parts.values[: len(content)] = content

    return change


def evaluated_with_another(parts: Parts) -> None:
    record = {"name": "spare", "kind": "parameter", "dtype": "float32", "shape": [3, 3], "requires_grad": True}
    parts.manifest["tensors"].append(record | {"persistent": True, "tie": None, "order": [0, 1]})
    end = len(parts.values)
    parts.values += bytes(36)
    parts.header["spare"] = {"dtype": "F32", "shape": [3, 3], "data_offsets": [end, end + 36]}
    text = json.dumps(parts.eval).replace("one.weight", "spare")
    parts.eval = json.loads(text)


def write_through_a_view(parts: Parts) -> None:
    node("aten.detach.default", WEIGHT)(parts)
    parts.train["nodes"].insert(1, {"op": "aten.fill_.Scalar", "args": [{"node": 0}, 0.0]})
    parts.train["nodes"][2:] = json.loads(json.dumps(parts.train["nodes"][2:]), object_hook=_count_up)


def statistics(mean: Any) -> Change:
    return node("aten.batch_norm.default", X, None, None, mean, {"tensor": "norm.running_var"}, True, 0.1, 1e-5, False)


CASES: dict[str, tuple[Change, str]] = {
    # schema
    "integer 2^70": (raw(TRAIN, b'{"nodes": [], "output": %d}' % 2**70), "E-JSON"),
    "integer of 5,000 digits": (raw(TRAIN, b'{"nodes": [], "output": ' + b"9" * 5000 + b"}"), "E-JSON"),
    "number beyond a float": (raw(TRAIN, b'{"nodes": [], "output": 1e999}'), "E-JSON"),
    "deep JSON": (raw(TRAIN, b"[" * 100_000 + b"]" * 100_000), "E-JSON"),
    "JSON almost too deep": (raw(TRAIN, b'{"nodes": [], "output": ' + b"[" * 900 + b"]" * 900 + b"}"), "E-JSON"),
    "NaN in JSON": (raw(MANIFEST, b'{"version": NaN}'), "E-JSON"),
    "duplicate key": (raw(EVAL, b'{"nodes": [], "nodes": [], "output": null}'), "E-JSON"),
    "half a character": (raw(EVAL, b'{"nodes": [], "output": "\\ud800"}'), "E-SCHEMA"),
    "millions of values": (raw(EVAL, b'{"nodes": [], "output": [' + b"1," * 3_000_000 + b"1]}"), "E-JSON"),
    "17 MiB of JSON": (raw(EVAL, b'{"nodes": [], "output": "' + b"x" * (17 << 20) + b'"}'), "E-SIZE"),
    "300,000 nodes": (lambda parts: parts.train.update(nodes=parts.train["nodes"][:1] * 50_000), "E-SCHEMA"),
    "manifest that is a list": (raw(MANIFEST, b"[]"), "E-SCHEMA"),
    "tensors that are no list": (manifest(tensors={"one.weight": 1}), "E-SCHEMA"),
    "missing hash": (lambda parts: parts.manifest["parts"].pop(WEIGHTS), "E-SCHEMA"),
    "hash of something else": (lambda parts: parts.manifest["parts"].update({"../x": "0"}), "E-SCHEMA"),
    "input of complex numbers": (lambda parts: parts.manifest["inputs"][0].update(dtype="complex64"), "E-SCHEMA"),
    "negative shape": (tensor(0, shape=[-3, 3]), "E-SCHEMA"),
    "truth value as a size": (tensor(0, shape=[True, 3]), "E-SCHEMA"),
    "rank 13": (tensor(0, shape=[1] * 13, order=list(range(13))), "E-SCHEMA"),
    "later version": (manifest(version=2), "E-VERSION"),
    "version 0": (manifest(version=0), "E-VERSION"),
    "version of words": (manifest(version="1"), "E-SCHEMA"),
    # tensors
    "header of 2^62 bytes": (lambda parts: parts.raw.update({WEIGHTS: (1 << 62).to_bytes(8, "little") + b"{}"}), "E-TENSORS"),
    "no header": (raw(WEIGHTS, b"\x01"), "E-TENSORS"),
    "header that is no JSON": (raw(WEIGHTS, (2).to_bytes(8, "little") + b"{]"), "E-TENSORS"),
    "deep header": (raw(WEIGHTS, (1900).to_bytes(8, "little") + b"[" * 950 + b"]" * 950), "E-TENSORS"),
    "tensors that overlap": (entry("one.bias", data_offsets=[0, 12]), "E-TENSORS"),
    "tensor beyond the end": (entry("two.bias", data_offsets=[1 << 40, (1 << 40) + 12]), "E-TENSORS"),
    "offsets that run backwards": (entry("two.bias", data_offsets=[116, 104]), "E-TENSORS"),
    "offsets that are fractions": (entry("two.bias", data_offsets=[104.0, 116.0]), "E-TENSORS"),
    "shape of the header": (entry("two.bias", shape=[1, 3]), "E-TENSORS"),
    "entry that is no object": (lambda parts: parts.header.update({"two.bias": [0, 12]}), "E-TENSORS"),
    "bytes that no tensor owns": (lambda parts: parts.values.extend(b"hidden"), "E-TENSORS"),
    "huge shape": (tensor(0, shape=[1 << 62, 1 << 62]), "E-TENSORS"),
    "huge shape of nothing": (tensor(0, shape=[0, 1 << 62, 1 << 62], order=[0, 1, 2]), "E-TENSORS"),
    "complex numbers": (tensor(0, dtype="complex64"), "E-TENSORS"),
    "unknown type": (tensor(0, dtype="__class__"), "E-TENSORS"),
    "order of other dimensions": (tensor(0, order=[0, 7]), "E-TENSORS"),
    "parameter that is not persistent": (tensor(0, persistent=False), "E-TENSORS"),
    "trained integers": (tensor(6, requires_grad=True), "E-TENSORS"),
    "NaN among the weights": (values(b"\x00\x00\xc0\x7f"), "E-FINITE"),
    "infinity among the weights": (values(b"\x00\x00\x80\xff"), "E-FINITE"),
    # names
    "tensor named forward": (renamed("forward"), "E-NAMES"),
    "tensor named like the reader's own": (renamed("_umodel"), "E-NAMES"),
    "tensor named like a method of the reader's": (renamed("structure"), "E-NAMES"),
    "module named like a method of the reader's": (renamed("structure.bias"), "E-NAMES"),
    "tensor named with a dunder": (renamed("two.__class__"), "E-NAMES"),
    "tensor named like an attribute": (renamed("two._parameters"), "E-NAMES"),
    "tensor named with a path": (renamed("../../two"), "E-NAMES"),
    "tensor named with a newline": (renamed("two.bias\n"), "E-NAMES"),
    "tensor named with nothing": (renamed(""), "E-NAMES"),
    "tensor named by a letter that looks like one": (renamed("two.bi\u0430s"), "E-NAMES"),
    "tensor in a hundred modules": (renamed("a." * 100 + "b"), "E-NAMES"),
    "tensor below a tensor": (renamed("one.weight.data_"), "E-NAMES"),
    "tensor above a tensor": (renamed("one"), "E-NAMES"),
    "alias named forward": (lambda parts: parts.rename("two.weight", "forward"), "E-NAMES"),
    "alias of itself": (tensor(7, tie="two.weight"), "E-NAMES"),
    "alias of what comes later": (tensor(7, tie="two.bias"), "E-NAMES"),
    "alias of another type": (tensor(7, dtype="float64"), "E-NAMES"),
    "alias of another kind": (tensor(7, kind="buffer", requires_grad=False), "E-NAMES"),
    "input named self": (lambda parts: parts.manifest["inputs"][0].update(name="self"), "E-NAMES"),
    "input named with a dunder": (lambda parts: parts.manifest["inputs"][0].update(name="__class__"), "E-NAMES"),
    "input twice": (lambda parts: parts.manifest["inputs"].append(parts.manifest["inputs"][0]), "E-NAMES"),
    "two inputs at a position": (
        lambda parts: parts.manifest["inputs"].append(parts.manifest["inputs"][0] | {"name": "y"}),
        "E-NAMES",
    ),
    "no input": (manifest(inputs=[]), "E-NAMES"),
    "output named with a dunder": (train(output={"dict": [["__class__", {"node": 9}]]}), "E-NAMES"),
    "output named with a path": (train(output={"tuple": [{"dict": [["../a", {"node": 9}]]}]}), "E-NAMES"),
    # graphs
    "forward reference": (node("aten.relu.default", {"node": 3}), "E-GRAPH"),
    "reference to itself": (node("aten.relu.default", {"node": 0}), "E-GRAPH"),
    "negative reference": (node("aten.relu.default", {"node": -1}), "E-GRAPH"),
    "unknown tensor": (node("aten.relu.default", {"tensor": "none"}), "E-GRAPH"),
    "attribute as a tensor": (node("aten.relu.default", {"tensor": "__dict__"}), "E-GRAPH"),
    "unknown constant": (node("aten.relu.default", {"constant": 1}), "E-GRAPH"),
    "unknown symbol": (node("aten.relu.default", {"module": "os"}), "E-GRAPH"),
    "another device": (node("aten.to.device", X, {"device": "cuda:7"}, {"dtype": "float32"}), "E-GRAPH"),
    "free string": (node("aten.relu.default", "__import__('os')"), "E-GRAPH"),
    "long string": (node("aten.einsum.default", "a" * 201, [X]), "E-GRAPH"),
    "bad keyword": (node("aten.relu.default", X, kwargs={"__class__": 1}), "E-GRAPH"),
    "pinned memory": (node("aten.ones.default", [1], kwargs={"pin_memory": True}), "E-GRAPH"),
    "list without end": (node("aten.reshape.default", X, [1] * 10_001), "E-GRAPH"),
    "integer beyond 64 bits": (node("aten.add.Tensor", X, 1 << 63), "E-GRAPH"),
    "in place on a parameter": (node("aten.add_.Tensor", WEIGHT, 1), "E-GRAPH"),
    "in place on a statistic": (node("aten.add_.Tensor", MEAN, 1), "E-GRAPH"),
    "in place on an input": (node("aten.add_.Tensor", X, 1), "E-GRAPH"),
    "in place on a constant": (node("aten.add_.Tensor", {"constant": 0}, 1), "E-GRAPH"),
    "in place with a factor": (node("aten.add_.Tensor", COUNT, 1, kwargs={"alpha": 2}), "E-GRAPH"),
    "in place with a tensor": (node("aten.add_.Tensor", COUNT, X), "E-GRAPH"),
    "statistics in a parameter": (statistics(WEIGHT), "E-GRAPH"),
    "statistics in an input": (statistics(X), "E-GRAPH"),
    "statistics in a constant": (statistics({"constant": 0}), "E-GRAPH"),
    "write to a parameter": (train(writes=[["one.bias", {"node": 9}]]), "E-GRAPH"),
    "write to a tied weight": (train(writes=[["two.weight", WEIGHT]]), "E-GRAPH"),
    "write to an attribute": (train(writes=[["forward", WEIGHT]]), "E-GRAPH"),
    "write of a number": (train(writes=[["norm.running_mean", 3]]), "E-GRAPH"),
    "two writes": (train(writes=[["norm.running_mean", {"constant": 0}]] * 2), "E-GRAPH"),
    "output of what there is not": (train(output={"node": 99}), "E-GRAPH"),
    "output of an unknown kind": (train(output={"set": [{"node": 9}]}), "E-GRAPH"),
    "deep output": (train(output=json.loads('{"list":[' * 10 + "1" + "]}" * 10)), "E-GRAPH"),
    "autocast to integers": (
        node("aten.relu.default", X, autocast={"device_type": "cpu", "dtype": "int64", "enabled": True}),
        "E-GRAPH",
    ),
    "evaluation with other weights": (evaluated_with_another, "E-GRAPH"),
    # operators
    "in place through a view": (write_through_a_view, "E-OP"),
    "from_file": (node("aten.from_file.default", "MARKER", True, 9), "E-OP"),
    "os.system": (node("torch.os.system", "touch MARKER"), "E-OP"),
    "eval": (node("py.eval", "open('MARKER', 'w')"), "E-OP"),
    "builtin": (node("builtins.exec", "open('MARKER', 'w')"), "E-OP"),
    "attribute of the module": (node("aten.__class__.default", X), "E-OP"),
    "dunder of an operator": (node("aten.add.__globals__", X), "E-OP"),
    "dunder operator": (node("aten.__and__.Tensor", X, X), "E-OP"),
    "higher-order operator": (node("higher_order.cond.default", X), "E-OP"),
    "operator of another library": (node("quantized.add.default", X, X), "E-OP"),
    "as_strided": (node("aten.as_strided.default", X, [99], [1]), "E-OP"),
    "set_": (node("aten.set_.source_Tensor", WEIGHT, X), "E-OP"),
    "resize_": (node("aten.resize_.default", WEIGHT, [9999]), "E-OP"),
    "empty": (node("aten.empty.memory_format", [9999]), "E-OP"),
    "empty_like": (node("aten.empty_like.default", X), "E-OP"),
    "new_empty": (node("aten.new_empty.default", X, [9999]), "E-OP"),
    "out": (node("aten.add.out", X, X, kwargs={"out": WEIGHT}), "E-OP"),
    "nonzero": (node("aten.nonzero.default", X), "E-OP"),
    "item": (node("aten.item.default", X), "E-OP"),
    "bytes read as another type": (node("aten.view.dtype", X, {"dtype": "bool"}), "E-OP"),
    "packed sequences": (node("aten.lstm.data", X, X, [X], [X], True, 1, 0.0, True, False), "E-OP"),
    "name that is a page long": (node("aten." + "a" * 9999 + ".default"), "E-OP"),
    "both graphs": (both, "E-OP"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Parts:
    return Parts(tiny(tmp_path_factory.mktemp("good")))


def refused(path: Path, code: str) -> InvalidSubmission:
    with pytest.raises(InvalidSubmission) as caught:
        load_umodel(path, job="evil")
    problems = caught.value.problems
    assert {problem.code for problem in problems} == {code}, str(caught.value)
    assert all(problem.job == "evil" and str(problem).isprintable() and len(str(problem)) < 1500 for problem in problems)
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_the_code_of_its_stage(name, good, tmp_path):
    change, code = CASES[name]
    parts = good.copy()
    change(parts)
    with marker(tmp_path) as owned:
        parts.train = json.loads(json.dumps(parts.train).replace("MARKER", str(owned)))
        refused(parts.write(tmp_path / "evil.umodel"), code)


def test_the_good_archive_is_accepted(good, tmp_path):
    load_umodel(good.write(tmp_path / "good.umodel"))(torch.ones(2, 3))


def test_all_problems_of_a_stage_are_told_and_none_of_later_ones(good, tmp_path):
    parts = good.copy()
    both(parts)
    parts.train["nodes"][1]["op"] = "aten.empty_like.default"
    error = refused(parts.write(tmp_path / "evil.umodel"), "E-OP")
    assert [problem.field.partition(": ")[2] for problem in error.problems] == [
        "graph.train.json: node 0", "graph.train.json: node 1", "graph.eval.json: node 0",
    ]  # fmt: skip
    assert "'aten.nonzero.default', which gives a result whose size depends on the data" in str(error)
    parts.train["output"] = {"node": 99}
    refused(parts.write(tmp_path / "evil.umodel"), "E-GRAPH")
    parts.rename("two.bias", "forward")
    refused(parts.write(tmp_path / "evil.umodel"), "E-NAMES")
    parts.values[:4] = b"\x00\x00\xc0\x7f"
    refused(parts.write(tmp_path / "evil.umodel"), "E-FINITE")
    parts.values[:4] = b"\x00\x00\xc1\x7f"
    refused(parts.write(tmp_path / "evil.umodel", mend=False), "E-HASH")
    parts.raw = {EVAL: b"{", TRAIN: b"{"}
    assert len(refused(parts.write(tmp_path / "evil.umodel"), "E-JSON").problems) == 2


@pytest.mark.parametrize("part", [TRAIN, EVAL, WEIGHTS])
def test_a_part_that_does_not_match_its_hash(part, good, tmp_path):
    content = good.content()
    content[part] = content[part][:-2] + bytes([content[part][-2] ^ 1]) + content[part][-1:]
    if part != WEIGHTS:
        content[part] = good.content()[part] + b" "
    refused(pack(tmp_path / "evil.umodel", content), "E-HASH")


def zip_of(change: Callable[[bytearray], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        array = bytearray(content)
        return bytes(array) if change(array) is None else b""

    return changed


def directory(content: bytes) -> int:
    return int.from_bytes(content[-6:-2], "little")


def point_the_second_at_the_first(content: bytearray) -> None:
    second = content.index(b"PK\x01\x02", directory(content) + 4)
    content[second + 42 : second + 46] = bytes(4)


ZIPS: dict[str, Callable[[bytes], bytes]] = {
    "random bytes": lambda content: torch.randint(0, 256, (4000,), dtype=torch.uint8).numpy().tobytes(),
    "truncated": lambda content: content[:-100],
    "half": lambda content: content[: len(content) // 2],
    "something before it": lambda content: b"#!/bin/sh\n" + content,
    "something after it": lambda content: content + b"\n",
    "comment": lambda content: content[:-2] + b"\x05\x00hello",
    "overlapping parts": zip_of(point_the_second_at_the_first),
    "five entries": lambda content: content[:-14] + b"\x05\x00\x05\x00" + content[-10:],
    "directory of 4 GB": lambda content: content[:-10] + b"\xfe\xff\xff\xff" + content[-6:],
    "directory nowhere": lambda content: content[:-6] + b"\xfe\xff\xff\xff" + content[-2:],
    "longer form that is not there": lambda content: content[:-6] + b"\xff\xff\xff\xff" + content[-2:],
    "other name in front of a part": lambda content: content.replace(TRAIN.encode(), b"../../../../tmp/"[:16], 1),
    "other name in the directory": lambda content: (
        content[: directory(content)] + content[directory(content) :].replace(TRAIN.encode(), b"../../../../../x", 1)
    ),
    "encrypted": lambda content: content[: directory(content) + 8] + b"\x01" + content[directory(content) + 9 :],
    "damaged manifest": lambda content: content.replace(b'"requires_grad": true', b'"requires_grad":  true'[:21], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_of_another_layout_is_refused(name, good, tmp_path):
    path = good.write(tmp_path / "evil.umodel")
    path.write_bytes(ZIPS[name](path.read_bytes()))
    refused(path, "E-ZIP")


def test_zips_of_other_parts_are_refused(good, tmp_path):
    content = good.content()
    refused(pack(tmp_path / "a.umodel", content, compression=zipfile.ZIP_DEFLATED), "E-ZIP")
    refused(pack(tmp_path / "b.umodel", content | {"../../evil": b"x"}), "E-ZIP")
    refused(pack(tmp_path / "c.umodel", {name: content[name] for name in (TRAIN, EVAL, WEIGHTS)}), "E-ZIP")
    refused(pack(tmp_path / "d.umodel", {"../m.json" if n == MANIFEST else n: c for n, c in content.items()}), "E-ZIP")
    with zipfile.ZipFile(tmp_path / "e.umodel", "w") as archive:
        for name in (TRAIN, WEIGHTS, MANIFEST):
            archive.writestr(name, content[name])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(TRAIN, content[TRAIN])
    refused(tmp_path / "e.umodel", "E-ZIP")
    (tmp_path / "f.umodel").touch()
    refused(tmp_path / "f.umodel", "E-SIZE")


def test_a_sparse_file_of_9_gib_is_refused_unread(tmp_path):
    with (tmp_path / "g.umodel").open("wb") as file:
        file.truncate(9 << 30)
    refused(tmp_path / "g.umodel", "E-SIZE")


FAILING: dict[str, Change] = {
    "allocation bomb": node("aten.ones.default", [1 << 50]),
    "size that overflows": node("aten.ones.default", [(1 << 63) - 1, 8]),
    "number that grows": node("py.mul", 1 << 62, 1 << 62),
    "division of sizes by zero": node("py.floordiv", 1, 0),
    "no size at all": node("py.int", {"float": "nan"}),
    "index out of range": node("aten.select.int", X, 1, 99),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_what_only_running_tells_is_an_ordinary_error_of_that_model(name, good, tmp_path):
    parts = good.copy()
    FAILING[name](parts)
    loaded = load_umodel(parts.write(tmp_path / "evil.umodel"))
    with pytest.raises((RuntimeError, IndexError, ArithmeticError, ValueError)):
        loaded(torch.ones(2, 3))


@pytest.mark.parametrize("op", ["aten.index_select.default", "aten.gather.default", "aten.embedding.default"])
def test_an_index_computed_out_of_range_is_an_ordinary_error_on_a_cpu(op, good, tmp_path):
    parts = good.copy()
    computed = {"node": 0}
    args = {"index_select": [X, 0, {"node": 1}], "gather": [X, 1, computed], "embedding": [WEIGHT, computed]}
    nodes = [
        {"op": "aten.to.dtype", "args": [X, {"dtype": "int64"}]},
        {"op": "aten.flatten.using_ints", "args": [computed]},
        {"op": op, "args": args[op.split(".")[1]]},
    ]
    parts.train = parts.eval = {"nodes": nodes, "output": {"node": 2}}
    loaded = load_umodel(parts.write(tmp_path / "evil.umodel"))
    with pytest.raises((IndexError, RuntimeError), match=r"index|range|bounds"):
        loaded(torch.full((2, 3), 1e9))


def test_the_largest_graph_that_is_allowed_runs(good, tmp_path):
    parts = good.copy()
    chain = [{"op": "aten.neg.default", "args": [{"node": index - 1} if index else X]} for index in range(19_999)]
    parts.train["nodes"] = [*chain, {"op": "aten.linear.default", "args": [{"node": 19_998}, WEIGHT]}]
    parts.train["output"] = {"node": 19_999}
    parts.eval = {"nodes": [], "output": X}
    loaded = load_umodel(parts.write(tmp_path / "long.umodel"))
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), nn.functional.linear(-x, loaded.state_dict()["one.weight"]))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(1))


REAL = {
    "lenet": lambda: (lenet().model, torch.randn(2, 1, 28, 28)),
    "lstm": lambda: (LSTMClassifier(), torch.randint(0, 50, (2, 12))),
    "tied embedding": lambda: (TiedEmbedding(), torch.randint(0, 20, (2, 5))),
}


@pytest.mark.parametrize("model", REAL)
def test_real_models_with_one_thing_changed_are_refused(model, tmp_path):
    torch.manual_seed(0)
    real = Parts(export(*REAL[model](), tmp_path / "real.umodel"))
    first = real.manifest["tensors"][0]["name"]
    changes: dict[str, Change] = {
        "E-OP": lambda parts: parts.train["nodes"][0].update(op="aten.empty_like.default"),
        "E-GRAPH": lambda parts: parts.eval["nodes"][0].update(args=[{"node": 0}]),
        "E-NAMES": lambda parts: parts.rename(first, "forward"),
        "E-TENSORS": lambda parts: parts.values.append(0),
        "E-SCHEMA": lambda parts: parts.manifest.update(code="import os"),
    }
    for code, change in changes.items():
        parts = real.copy()
        change(parts)
        refused(parts.write(tmp_path / "evil.umodel"), code)
    load_umodel(real.write(tmp_path / "good.umodel"))
