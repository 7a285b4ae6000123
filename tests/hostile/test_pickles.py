"""Pickles of people who mean harm: refused with a problem, and nothing of them is ever run or allocated."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hostile.forged_files import (
    linear_with,
    load,
    mapping_of,
    refusal,
    rewritten,
    tensor_of,
    text,
    whole_linear_with,
    write_pt,
)
from unified.errors import InvalidSubmission

LAYERS = {"layers": [{"name": "Linear", "in_features": 3, "out_features": 2}]}


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


@pytest.mark.parametrize("hide", ["alone", "attribute", "hook", "key", "weight", "item"])
def test_a_payload_is_never_run(hide, tmp_path):
    payload, model = Runs(tmp_path / "marker"), linear()
    values: dict[str, Any] = {
        "alone": payload,
        "key": {"weight": torch.zeros(2), "run": payload},
        "weight": {"weight": payload},
        "item": OrderedDict(weight=torch.zeros(2), state=[payload]),
    }
    if hide == "attribute":
        model.extra = payload
    if hide == "hook":
        model._forward_hooks[0] = payload
    assert refusal(
        saved(values.get(hide, model), tmp_path / "model.pt"), None if hide in ("alone", "attribute", "hook") else LAYERS
    )
    assert not (tmp_path / "marker").exists()


def test_a_payload_of_other_operations_is_never_run(tmp_path):
    touch = f"touch {tmp_path / 'marker'}".encode()
    for code in (b"cos\nsystem\n(S'" + touch + b"'\ntR.", b"(S'" + touch + b"'\nios\nsystem\n."):
        assert refusal(write_pt(tmp_path / "model.pt", code)).code == "E-PICKLE"
    assert not (tmp_path / "marker").exists()


def changed(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    model = nn.Sequential(linear(), nn.ReLU())
    change(model)
    return model


CHANGES: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "forward": (lambda m: setattr(m[0], "forward", torch.nn.functional.relu), "0.forward"),
    "forward hook": (lambda m: m[0].register_forward_hook(print), "0._forward_hooks"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(print), "_forward_pre_hooks"),
    "backward hook": (lambda m: m.register_full_backward_hook(print), "_backward_hooks"),
    "state-dict hook": (lambda m: m._register_state_dict_hook(print), "_state_dict_hooks"),
    "cycle": (lambda m: m._modules.update({"2": m}), "2"),
    "child of no name": (lambda m: m._modules.update({"": nn.ReLU()}), "the module"),
    "child called as a grandchild": (lambda m: m._modules.update({"0.a": nn.ReLU()}), "0.a"),
    "child called forward": (lambda m: m._modules.update(forward=nn.ReLU()), "forward"),
    "child of a leaf": (lambda m: m[0].add_module("more", nn.ReLU()), "0"),
    "weight of 7": (lambda m: m[0]._parameters.update(weight=7), "0.weight"),
    "weight that is a buffer": (lambda m: m[0]._parameters.update(weight=torch.zeros(2, 3)), "0.weight"),
    "constructor bomb": (lambda m: setattr(m[0], "in_features", 1 << 40), "0.weight"),
    "negative size": (lambda m: setattr(m[0], "in_features", -3), "0"),
    "size that is a truth": (lambda m: setattr(m[0], "in_features", True), "0"),
    "size beyond 64 bits": (lambda m: setattr(m[0], "in_features", 1 << 62), "0"),
    "one module in another mode": (lambda m: m[1].eval(), "1.training"),
    "mode that is a text": (lambda m: setattr(m[1], "training", "yes"), "1.training"),
    "attribute": (lambda m: setattr(m[1], "scale", 3), "1.scale"),
    "inplace of another kind": (lambda m: setattr(m[1], "inplace", 1), "1"),
    "parameter too many": (lambda m: m[1].register_parameter("more", nn.Parameter(torch.zeros(1))), "1"),
    "parameter with an attribute": (lambda m: setattr(m[0].weight, "x", 1), "0.weight"),
    "nothing where a module is": (lambda m: m._modules.update({"1": None}), "1"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_module_is_refused_where_it_was_changed(case, tmp_path):
    change, where = CHANGES[case]
    problem = refusal(saved(changed(change), tmp_path / "model.pt"))
    assert problem.code in ("E-CLASS", "E-TENSORS")
    assert problem.field.startswith(f"model.pt: {where}"), problem


def test_a_recurrent_network_of_a_billion_layers_is_not_begun(tmp_path):
    model = nn.LSTM(2, 3)
    model.num_layers = 10**9
    assert "num_layers" in refusal(saved(model, tmp_path / "model.pt")).field


def test_weights_listed_beside_the_parameters_are_these(tmp_path):
    model = nn.GRU(2, 3)
    model._flat_weights[0] = nn.Parameter(torch.zeros(9, 2))
    assert refusal(saved(model, tmp_path / "model.pt")).field.endswith("_flat_weights")


def overlapping() -> dict[str, torch.Tensor]:
    base = torch.zeros(10)
    return {"weight": base[:6], "bias": base[4:]}


def two_parameters_over_one_memory() -> nn.Module:
    one = linear()
    two = linear()
    two.weight = nn.Parameter(one.weight.data)
    return nn.Sequential(one, two)


TENSORS: dict[str, Callable[[], object]] = {
    "stride 0 of 10^12": lambda: {"weight": torch.zeros(1).expand(10**12)},
    "strides over each other": lambda: {"weight": torch.zeros(9).as_strided((4, 4), (1, 1))},
    "meta": lambda: {"weight": torch.empty(10**9, device="meta")},
    "overlapping": overlapping,
    "complex": lambda: {"weight": torch.zeros(2, dtype=torch.complex64)},
    "unsigned": lambda: {"weight": torch.zeros(2, dtype=torch.uint16)},
    "eight bits": lambda: {"weight": torch.zeros(2).to(torch.float8_e4m3fn)},
    "sparse": lambda: {"weight": torch.eye(3).to_sparse()},
    "quantized": lambda: {"weight": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
    "conjugated": lambda: {"weight": torch.zeros(2, dtype=torch.complex64).conj()},
    "two parameters over one memory": two_parameters_over_one_memory,
    "nested": lambda: {"state_dict": {"weight": torch.zeros(2)}, "epoch": 3},
    "dunder name": lambda: {"__class__": torch.zeros(2)},
    "empty name": lambda: {"": torch.zeros(2)},
    "number as a name": lambda: {3: torch.zeros(2)},
    "list": lambda: [torch.zeros(2)],
    "tensor alone": lambda: torch.zeros(2),
}


@pytest.mark.parametrize("case", TENSORS)
def test_odd_tensors_are_refused(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(TENSORS[case](), tmp_path / "model.pt")
    plain = case in ("list", "tensor alone") or case.startswith("two")
    assert refusal(path, None if plain else LAYERS).code in ("E-TENSORS", "E-CLASS")


def test_a_kilobyte_that_stands_for_much_memory(tmp_path):
    model = nn.Linear(1, 1)
    model.in_features = model.out_features = 13_416
    model.weight = nn.Parameter(torch.zeros(1).expand(13_416, 13_416))
    model.bias = nn.Parameter(torch.zeros(1).expand(13_416))
    path = saved(model, tmp_path / "model.pt")
    assert path.stat().st_size < 3_000
    assert refusal(path).code == "E-TENSORS"
    assert refusal(saved({"weight": model.weight}, path), LAYERS).code == "E-TENSORS"


def test_not_a_number_is_refused(tmp_path):
    model = linear()
    model.weight.data[0, 0] = float("nan")
    assert refusal(saved(model, tmp_path / "model.pt")).code == "E-FINITE"
    assert refusal(saved(nn.Sequential(model).state_dict(), tmp_path / "model.pt"), LAYERS).code == "E-FINITE"


def test_the_container_is_as_torch_writes_it(tmp_path):
    good = saved(linear(), tmp_path / "good.pt")
    load(rewritten(good, tmp_path / "same.pt"))
    assert refusal(rewritten(good, tmp_path / "model.pt", deflated=True)).code == "E-ZIP"
    for change in ({"byteorder": b"big"}, {"data/0": b"\0" * 4}, {"data/0": b"\0" * 400}):
        assert refusal(rewritten(good, tmp_path / "model.pt", change=change)).code in ("E-ZIP", "E-TENSORS")
    for parts in ({"../../data.pkl": b""}, {"code/x.py": b""}, {"data/0x": b""}):
        assert refusal(write_pt(tmp_path / "model.pt", mapping_of(b"N"), parts), LAYERS).code == "E-ZIP"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_pt(tmp_path / "model.pt", mapping_of(b"N"), {"data.pkl": b"N."})
    assert refusal(tmp_path / "model.pt", LAYERS).code == "E-ZIP"


def test_cut_and_garbled_files_end_in_problems(tmp_path):
    content = saved(nn.Sequential(linear(), nn.BatchNorm1d(2)), tmp_path / "good.pt").read_bytes()
    draw = random.Random(0)
    variants = [content[: len(content) * part // 12] for part in range(12)]
    for _ in range(40):
        spoilt = bytearray(content)
        for _ in range(3):
            spoilt[draw.randrange(len(content))] = draw.randrange(256)
        variants.append(bytes(spoilt))
    variants += [draw.randbytes(500), b"\x80\x02" + draw.randbytes(500), b"PK\x03\x04" + draw.randbytes(500)]
    for number, variant in enumerate(variants):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(variant)
        with contextlib.suppress(InvalidSubmission):  # whatever it is: never another error
            load(path)


#: A pair of a pair of a pair …, which would take 2^60 places written out.
LAUGHS = b"N\x85q\x00" + b"".join(bytes([104, n, 104, n, 134, 113, n + 1]) for n in range(60))

#: A dict of eight times the same dict of eight times the same dict …
DICTS = b"}" + text("k") + b"Ns"
for level in range(30):
    DICTS = (
        b"}"
        + text("k")
        + DICTS
        + bytes([113, level])
        + b"s"
        + b"".join(text(f"{n}") + bytes([104, level, 115]) for n in range(7))
    )

PICKLES = {
    "memo bomb": b"\x80\x02" + LAUGHS + b".",
    "deep marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "deep tuple": mapping_of(b"N" + b"\x85" * 100_000),
    "deep tuple as a size": linear_with("in_features", b"N" + b"\x85" * 100_000),
    "memo bomb as a size": linear_with("in_features", LAUGHS),
    "list within itself": mapping_of(b"]q\x00h\x00a"),
    "memo bomb as a key": b"\x80\x02}" + LAUGHS + b"Ns.",
    "memo bomb as a type of storage": mapping_of(tensor_of(kind=LAUGHS)),
    "memo bomb as a length of a storage": mapping_of(tensor_of(numel=LAUGHS)),
    "memo bomb of dicts as an attribute, not a size": whole_linear_with("extra", DICTS),
    "dict within itself as an attribute, not a size": whole_linear_with("extra", b"}q\x00" + text("a") + b"h\x00s"),
    "nothing of a huge shape": mapping_of(tensor_of(shape=b"(K\x00" + 2 * (b"\x8a\x08" + bytes(7) + b"\x40") + b"t")),
    "integer of many digits": mapping_of(b"\x8b" + (10_000).to_bytes(4, "little") + b"\x01" * 10_000),
    "integer of 65 bits": mapping_of(b"\x8a\x09" + b"\x01" * 9),
    "text of a length it has not": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "memo that is not there": b"\x80\x02h\x07.",
    "nothing on the stack": b"\x80\x02R.",
    "two objects": b"\x80\x02NN.",
    "bytes behind the end": b"\x80\x02}.N.",
    "no end": b"\x80\x02}",
    "extension": b"\x80\x02\x82\x01.",
    "state of a number": b"\x80\x02K\x01}b.",
    "call of a text": b"\x80\x02" + text("os.system") + b")R.",
    "key twice": b"\x80\x02}(" + text("a") + b"N" + text("a") + b"Nu.",
    "class with a state twice": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}b}b.",
    "empty": b"",
    "persistent id that is no tuple": mapping_of(text("x") + b"Q"),
    "too many operations": b"\x80\x02" + b"N0" * 1_100_000 + b".",
}


@pytest.mark.parametrize("case", PICKLES)
def test_malformed_pickles_are_refused(case, tmp_path):
    path = write_pt(tmp_path / "model.pt", PICKLES[case], {"data/0": bytes(4)})
    assert refusal(path, LAYERS if "size" not in case else None).code in ("E-PICKLE", "E-TENSORS", "E-CLASS", "E-DECLARED")


def test_what_runs_code_is_never_loaded_without_trust(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(linear()).save(tmp_path / "script.pt")
        torch.export.save(torch.export.export(linear(), (torch.zeros(2, 3),)), tmp_path / "model.pt2")
        torch.save(linear(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("script.pt", "model.pt2", "old.pt"):
        problem = refusal(tmp_path / name)
        assert problem.code == "E-TRUST"
        assert "--trust" in problem.remedy


def test_a_foreign_class_is_named_and_never_imported(tmp_path):
    pickle = linear_with("x", b"N").replace(b"torch.nn.modules.linear\nLinear", b"evil_module\nPayload")
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Payload: pass\n")
    write_pt(tmp_path / "model.pt", pickle)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\nfrom tests.hostile.forged_files import refusal\n"
        f"problem = refusal(Path({str(tmp_path / 'model.pt')!r}))\n"
        "assert problem.code == 'E-CLASS' and 'evil_module.Payload' in problem.given and 'export' in problem.remedy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "marker").exists()


def test_layers_that_are_one_are_not_copied_without_end(tmp_path):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1, 4), 1, enable_nested_tensor=False)
    encoder.layers = nn.ModuleList([encoder.layers[0]] * 15_000)
    encoder.num_layers = 15_000
    assert "20000 modules" in refusal(saved(encoder, tmp_path / "model.pt")).expected
    many = nn.Sequential(*(nn.TransformerEncoder(encoder.layers[0], 1, enable_nested_tensor=False) for _ in range(300)))
    for each in many:
        each.layers, each.num_layers = nn.ModuleList([encoder.layers[0]] * 10), 10
    assert "20000 modules" in refusal(saved(many, tmp_path / "model.pt")).expected


def test_offsets_that_a_job_hands_in_reach_no_embedding_bag(tmp_path):
    load(saved(nn.Sequential(nn.EmbeddingBag(4, 2)), tmp_path / "model.pt"))
    assert "offsets" in refusal(saved(nn.EmbeddingBag(4, 2), tmp_path / "model.pt")).expected
