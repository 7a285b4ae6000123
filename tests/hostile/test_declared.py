"""Weights, architectures and folders of people who mean harm: refused before anything is allocated or fetched."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hostile.forged_files import refusal
from tests.unit.pretrained_folders import bert_folder
from unified.submission.models import recognise

LINEAR = {"name": "Linear", "in_features": 3, "out_features": 2}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


HUGE = 1 << 31
ARCHITECTURES: dict[str, list[Any]] = {
    "unknown class": [{"name": "Linera", "in_features": 3, "out_features": 2}],
    "builtin": [{"name": "__import__"}],
    "function of torch.nn": [{"name": "functional"}],
    "loss": [{"name": "CrossEntropyLoss"}],
    "lazy": [{"name": "LazyLinear", "out_features": 2}],
    "made of modules": [{"name": "Transformer"}],
    "huge": [{"name": "Linear", "in_features": HUGE, "out_features": HUGE}],
    "beyond 64 bits": [{"name": "Linear", "in_features": 1 << 62, "out_features": 1 << 62}],
    "negative": [{"name": "Linear", "in_features": -1, "out_features": 2}],
    "a billion layers": [{"name": "LSTM", "input_size": 1, "hidden_size": 1, "num_layers": 10**9}],
    "many layers": [LINEAR] * 10_001,
    "deep": [[[[[[[[LINEAR]]]]]]]],
    "truth as a number": [LINEAR | {"in_features": True}],
    "text as a number": [LINEAR | {"in_features": "3"}],
    "device": [LINEAR | {"device": "cuda"}],
    "dunder": [LINEAR | {"__class__": "x"}],
    "name missing": [{"in_features": 3}],
    "name that is no text": [{"name": ["Linear"]}],
    "number": [3],
    "nothing": [],
    "empty list": [[]],
    "other weights": [LINEAR, LINEAR],
    "buffers that are not stored": [LINEAR, {"name": "CircularPad1d", "padding": 1, "value": 3}],
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_layers_that_are_none_are_refused(case, weights):
    problem = refusal(weights, {"layers": ARCHITECTURES[case]})
    assert problem.code == "E-DECLARED"
    assert problem.field.startswith(("architecture", "model"))


def test_a_library_that_fetches_is_not_asked(weights):
    for library, name in (("torchvision", "hf-hub:me/evil"), ("timm", "local-dir:/tmp"), ("transformers", "BertModel")):
        assert refusal(weights, {"library": library, "name": name}).code == "E-DECLARED"


def header(records: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(records).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(*, dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"0.bias": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


FILES: dict[str, bytes] = {
    "header beyond the file": header(entry(), b"\0" * 8, length=1 << 62),
    "huge shape": header(entry(shape=(1 << 40,)), b"\0" * 8),
    "negative shape": header(entry(shape=(-2,)), b"\0" * 8),
    "unknown type": header(entry(dtype="F8_E4M3"), b"\0" * 8),
    "type that is no text": header(entry(dtype=[1]), b"\0" * 8),
    "offsets beyond the file": header(entry(offsets=(8, 16)), b"\0" * 8),
    "offsets that are none": header(entry(offsets=("a", 8)), b"\0" * 8),
    "entry that is no object": header({"0.bias": 3}),
    "dunder": header({"__init__": entry()["0.bias"]}, b"\0" * 8),
    "hole": header(entry(), b"\0" * 12),
    "nothing of a huge shape": header(entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))),
    "deep": struct.pack("<Q", 60_000) + b'{"a":' * 10_000 + b"1" + b"}" * 9_999,
    "twice": struct.pack("<Q", 20) + b'{"a": 1, "a": 2}    ',
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_safetensors_are_refused(case, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(FILES[case])
    assert refusal(tmp_path / "w.safetensors", {"layers": [LINEAR]}).code in ("E-TENSORS", "E-FORM")


CONFIGS: dict[str, dict[str, Any]] = {
    "code of its own": {"auto_map": {"AutoModel": "modeling_evil.Evil"}},
    "code of its own within": {"text_config": {"auto_map": {"AutoModel": "modeling_evil.Evil"}}},
    "kernel from a hub": {"attn_implementation": "kernels-community/flash-attn"},
    "kernel from a hub, hidden": {"_attn_implementation": "me/evil:run"},
    "kernel from a hub, within": {"vision_config": {"_attn_implementation_internal": "me/evil"}},
    "flash attention": {"_attn_implementation": "flash_attention_2"},
    "kernel from a hub, under another name": {"attribute_map": {"x": "_attn_implementation_internal"}, "x": "me/evil"},
    "kernels": {"use_kernels": True},
    "quantized": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "backbone": {"backbone": "me/evil", "use_pretrained_backbone": True},
    "another library": {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]},
    "another library, within": {
        "model_type": "gemma3n",
        "architectures": ["Gemma3nForConditionalGeneration"],
        "vision_config": {"architecture": "local-dir:/", "model_args": {"checkpoint_path": "/etc/passwd"}},
    },
    "unknown kind": {"model_type": "brett"},
    "no kind": {"model_type": None},
    "class that is none": {"architectures": ["BertForWorldDomination"]},
    "class that is no model": {"architectures": ["BertTokenizer"]},
    "class of another kind": {"architectures": ["GPT2LMHeadModel"]},
    "base of all": {"architectures": ["PreTrainedModel"]},
    "dunder class": {"architectures": ["__spec__"]},
    "architectures of a text": {"architectures": "BertForSequenceClassification"},
    "no architectures": {"architectures": None},
    "dunder": {"__class__": "x"},
    "type": {"dtype": "load"},
    "huge": {"vocab_size": 1 << 40, "hidden_size": 1 << 20},
    "more layers": {"num_hidden_layers": 3},
    "a billion layers": {"num_hidden_layers": 10**9},
    "text as a size": {"hidden_size": "8"},
    "many layers": {"num_hidden_layers": 60_000},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_reach_out_or_do_not_fit_are_refused(case, tmp_path):
    folder = bert_folder(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CONFIGS[case]))
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    assert refusal(folder).code == "E-DECLARED"
    assert not (tmp_path / "marker").exists()


def test_folders_of_pickles_and_links_are_refused(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert refusal(folder).code == "E-LINK"
    recognise(folder, job="own", trust=False, staged=True)  # the Python API's caller may read what they can
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    problem = refusal(folder)
    assert (problem.code, "pickle" in problem.given) == ("E-FORM", True)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        '{"weight_map": {"a": "../../etc/passwd"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "x.safetensors"}}',
    ],
)
def test_an_index_names_files_beside_it(index, tmp_path):
    folder = bert_folder(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert refusal(folder).code in ("E-TENSORS", "E-JSON", "E-FILE")
