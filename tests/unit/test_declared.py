"""Weights and a declared architecture make the model that they were saved from, or all that does not fit is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unified.errors import InvalidSubmission
from unified.job import JobSpec
from unified.job_parts import ArchitectureSpec
from unified.submission.declared import load_declared
from unified.submission.layer_list import layer_list
from unified.submission.models import load_model, recognise
from unified.submission.refusal import RefusedModelError

LAYERS: list[Any] = [
    {"name": "Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": [3, 3], "padding": "same", "bias": False},
    [{"name": "BatchNorm2d", "num_features": 4}, {"name": "ReLU", "inplace": True}],
    {"name": "AdaptiveAvgPool2d", "output_size": [2, None]},
    {"name": "Flatten"},
    {"name": "Linear", "in_features": 64, "out_features": 3},
]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 3), padding="same", bias=False),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.AdaptiveAvgPool2d((2, None)),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def text(**architecture: Any) -> str:
    return ArchitectureSpec(**architecture).canonical()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_a_list_of_layers_is_the_sequential_that_was_saved(name, tmp_path):
    model = network()
    before = torch.get_rng_state()
    loaded = load_declared(write(model.state_dict(), tmp_path / name), text(layers=LAYERS))
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(loaded) == repr(model)
    assert loaded.training
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(inputs), model(inputs))
    assert {name: value.requires_grad for name, value in loaded.named_parameters()} == dict.fromkeys(
        dict(model.named_parameters()), True
    )


def test_everything_that_does_not_fit_is_told_at_once(tmp_path):
    state = network().state_dict()
    state["head.weight"] = state.pop("4.weight")
    state["0.weight"] = torch.zeros(4, 1, 5, 5)
    state["4.bias"] = state["4.bias"].double()
    with pytest.raises(RefusedModelError) as caught:
        load_declared(write(state, tmp_path / "w.pt"), text(layers=LAYERS))
    told = [f"{fault.expected}: {fault.given}" for fault in caught.value.faults]
    assert len(told) == 4
    assert "'4.weight'" in told[0]
    assert "head.weight" in told[1]
    assert "(4, 1, 3, 3)" in told[2]
    assert "torch.float64" in told[3]


def test_at_most_twenty_of_a_kind_are_told(tmp_path):
    path = write({"x": torch.zeros(1)}, tmp_path / "w.pt")
    layers = [{"name": "Linear", "in_features": 1, "out_features": 1}] * 30
    with pytest.raises(RefusedModelError) as caught:
        load_declared(path, text(layers=layers))
    assert len(caught.value.faults) == 22
    assert "60 missing" in caught.value.faults[20].given


def test_mistakes_in_layers_name_what_was_meant():
    layers = [{"name": "Linaer"}, {"name": "Linear", "in_feature": 3, "out_features": "2"}, [{"name": "Dropout", "p": True}]]
    with pytest.raises(RefusedModelError) as caught:
        layer_list(layers)
    told = {fault.where.removeprefix("architecture.layers"): fault.remedy for fault in caught.value.faults}
    assert told["[0].name"] == "did you mean 'Linear'?"
    assert told["[1].in_feature"] == "did you mean 'in_features'?"
    assert {"[1].out_features", "[1].in_features", "[2][0].p"} <= told.keys()


def test_weights_without_an_architecture_and_the_other_way_round(tmp_path):
    weights = write(network().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InvalidSubmission, match=r"E-DECLARED.*without their model.*docs/job.md"):
        recognise(weights, job="lenet", trust=False, staged=False)
    torch.save(network(), tmp_path / "whole.pt")
    spec = ArchitectureSpec(layers=LAYERS)
    with pytest.raises(InvalidSubmission, match=r"E-DECLARED.*says itself"):
        recognise(tmp_path / "whole.pt", job="lenet", trust=False, staged=False, architecture=spec)


def test_the_architecture_counts_as_part_of_the_model(tmp_path):
    weights = write(network().state_dict(), tmp_path / "w.safetensors")
    other = [*LAYERS[:1], [LAYERS[1][0], {"name": "Tanh"}], *LAYERS[2:]]
    refs = [
        recognise(weights, job="lenet", trust=False, staged=False, architecture=ArchitectureSpec(layers=layers))
        for layers in (LAYERS, [dict(reversed(each.items())) if isinstance(each, dict) else each for each in LAYERS], other)
    ]
    assert refs[0].sha256 == refs[1].sha256 != refs[2].sha256
    assert "Tanh" in repr(load_model(refs[2]))


def test_a_job_without_an_architecture_keeps_its_fingerprint():
    job: dict[str, Any] = {"data": {"train": "a.pt"}, "loss": "MSELoss", "optimizer": "SGD", "epochs": 1, "batch_size": 2}
    plain = JobSpec(name="a", model="a.umodel", **job)
    assert plain.fingerprint("model", "data", "") == FINGERPRINT


#: Of that job, from before there were architectures.
FINGERPRINT = "2f392f27af8536a99f20c3b7441d1de194533d4411c497b1291d9155d1116440"


@pytest.mark.parametrize(
    ("architecture", "code", "field"),
    [
        ({}, "E-VALUE", "architecture"),
        ({"library": "timm"}, "E-MISSING", "architecture.name"),
        ({"name": "resnet18"}, "E-MISSING", "architecture.library"),
        ({"library": "timm", "name": "resnet18", "layers": [{"name": "ReLU"}]}, "E-VALUE", "architecture"),
        ({"layers": [{"name": "ReLU"}], "arguments": {"a": 1}}, "E-VALUE", "architecture.arguments"),
        ({"library": "keras", "name": "resnet18"}, "E-VALUE", "architecture.library"),
        ({"librar": "timm", "name": "resnet18"}, "E-FIELD", "architecture.librar"),
        ({"library": "timm", "name": "resnet18", "arguments": {"a": float("nan")}}, "E-VALUE", "architecture.arguments.a"),
        ("resnet18", "E-TYPE", "architecture"),
    ],
)
def test_an_architecture_is_a_name_or_a_list(architecture, code, field):
    job: dict[str, Any] = {"data": {"train": "a.pt"}, "loss": "MSELoss", "optimizer": "SGD", "epochs": 1, "batch_size": 2}
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec(name="a", model="w.safetensors", architecture=architecture, **job)
    assert (code, field) in [(problem.code, problem.field) for problem in caught.value.problems]


def test_a_module_needs_no_architecture():
    job: dict[str, Any] = {"data": {"train": "a.pt"}, "loss": "MSELoss", "optimizer": "SGD", "epochs": 1, "batch_size": 2}
    with pytest.raises(InvalidSubmission, match=r"architecture: expected null, as an nn\.Module"):
        JobSpec(name="a", model=nn.Linear(2, 2), architecture={"layers": [{"name": "ReLU"}]}, **job)


def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    path = write({"x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(RefusedModelError, match="timm, which is not installed") as caught:
        load_declared(path, text(library="timm", name="resnet18"))
    assert caught.value.faults[0].remedy == "pip install unifiednn[timm]"


@pytest.mark.parametrize(
    ("library", "name", "arguments", "side"),
    [
        ("torchvision", "resnet18", {"num_classes": 7}, 32),
        ("torchvision", "regnet_y_400mf", {"num_classes": 7}, 32),
        ("timm", "vit_tiny_patch16_224", {"num_classes": 5, "img_size": 32}, 32),
    ],
)
def test_models_of_libraries_are_what_the_libraries_build(library, name, arguments, side, tmp_path):
    package = pytest.importorskip(library)
    build = package.models.get_model if library == "torchvision" else package.create_model
    model = build(name, **arguments)
    path = write(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_declared(path, text(library=library, name=name, arguments=arguments))
    inputs = torch.randn(2, 3, side, side)
    assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet81", {}),
        ("resnet18", {"num_clases": 3}),
        ("resnet18", {"num_classes": "3"}),
        ("resnet18", {"num_classes": 1 << 40}),
        ("resnet18", {"pretrained": True}),
        ("resnet18", {"weights": "IMAGENET1K_V1"}),
        ("resnet18", {"checkpoint_path": "/etc/passwd"}),
        ("resnet18", {"norm_layer": "BatchNorm2d"}),
        ("hf-hub:me/evil", {}),
        ("fasterrcnn_resnet50_fpn", {}),
    ],
)
def test_what_a_library_would_fetch_or_does_not_know_is_refused(library, name, arguments, tmp_path):
    pytest.importorskip(library)
    path = write({"x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(RefusedModelError) as caught:
        load_declared(path, text(library=library, name=name, arguments=arguments))
    assert {fault.code for fault in caught.value.faults} == {"E-DECLARED"}
