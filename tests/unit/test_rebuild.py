"""Whole modules of torch.nn come back from their pickles as they were, without being unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unified.submission.layer_table import LAYERS, REFUSED, fits
from unified.submission.rebuild import rebuild
from unified.submission.torch_file import open_torch_file

#: A value for every argument that some class cannot do without.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("embed_dim", "d_model", "in_channels", "out_channels", "num_features", "num_channels"), 4),
    **dict.fromkeys(("embedding_dim", "input_size", "in_features"), 4),
    **dict.fromkeys(("num_heads", "nhead", "num_groups", "groups", "upscale_factor", "downscale_factor", "output_size"), 2),
    **dict.fromkeys(("out_features", "in1_features", "in2_features", "hidden_size", "kernel_size", "size"), 3),
    **dict.fromkeys(("padding", "dim", "value"), 1),
    "num_embeddings": 9,
    "normalized_shape": [3, 4],
    "unflattened_size": (2, 2),
    "threshold": 0.1,
    "norm_type": 2,
}


def again(model: nn.Module, path: Path) -> nn.Module:
    torch.save(model, path)
    return rebuild(open_torch_file(path), path)


def made(name: str) -> nn.Module:
    kind: Any = LAYERS[name].kind
    if name == "EmbeddingBag":  # alone, it would be handed its offsets
        return nn.Sequential(nn.EmbeddingBag(5, 3))
    if name == "Transformer":
        return nn.Transformer(4, 2, 2, 1, 8, activation="gelu")
    if name in ("TransformerEncoder", "TransformerDecoder"):
        return kind(getattr(nn, f"{name}Layer")(4, 2, 8, norm_first=True), 2, norm=nn.LayerNorm(4))
    arguments = {argument: VALUES[argument] for argument in LAYERS[name].required}
    return kind(**arguments, output_size=2) if name.startswith("Fractional") else kind(**arguments)


def test_every_class_of_torch_nn_is_accepted_or_refused_with_a_reason():
    classes = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert classes == LAYERS.keys() | REFUSED.keys()
    assert not LAYERS.keys() & REFUSED.keys()
    assert all(REFUSED.values())


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"ModuleList"}))
def test_every_accepted_class_comes_back(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(name)
    rebuilt = again(model, tmp_path / "model.pt")
    assert type(rebuilt) is type(model)
    assert repr(rebuilt) == repr(model)
    assert_same_tensors(model, rebuilt)
    plain = {key: value for key, value in vars(model).items() if isinstance(value, bool | int | float | str | tuple | None)}
    assert {key: vars(rebuilt)[key] for key in plain} == plain


def assert_same_tensors(model: nn.Module, rebuilt: nn.Module) -> None:
    ours, theirs = dict(rebuilt.state_dict()), dict(model.state_dict())
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
        assert (ours[name].dtype, ours[name].stride()) == (tensor.dtype, tensor.stride()), name
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in rebuilt.named_parameters()} == flags


ARGUMENTS = [
    nn.Linear(3, 2, bias=False),
    nn.Conv2d(2, 4, (3, 2), stride=2, padding="valid", groups=2, bias=False, padding_mode="reflect"),
    nn.ConvTranspose1d(2, 2, 3, output_padding=1, stride=2),
    nn.BatchNorm2d(3, affine=False, momentum=None),
    nn.BatchNorm1d(3, track_running_stats=False),
    nn.LayerNorm(3, bias=False),
    nn.LayerNorm(3, elementwise_affine=False),
    nn.LSTM(3, 4, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, proj_size=2),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.MultiheadAttention(4, 2, 0.1, bias=False, add_bias_kv=True, kdim=3, vdim=5, batch_first=True),
    nn.TransformerEncoderLayer(4, 2, 8, 0.3, "gelu", 1e-3, batch_first=True, norm_first=True, bias=False),
    nn.Sequential(nn.EmbeddingBag(5, 3, mode="max", padding_idx=2)),
    nn.PairwiseDistance(p=3.0, keepdim=True),
    nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.MaxPool2d([2, 3]),
]


PLAIN = [
    (nn.Linear(np.prod([2, 3]), np.int32(2)), nn.Linear(6, 2)),
    (nn.Conv2d(1, 2, (np.int64(2), 3)), nn.Conv2d(1, 2, (2, 3))),
    (nn.Dropout(np.float64(0.25)), nn.Dropout(0.25)),
    (nn.Unflatten(1, torch.Size([2, 2])), nn.Unflatten(1, (2, 2))),
]


@pytest.mark.parametrize("index", range(len(PLAIN)))
def test_numbers_of_numpy_and_sizes_are_as_good_as_plain_ones(index, tmp_path):
    model, expected = PLAIN[index]
    rebuilt = again(model, tmp_path / "model.pt")
    assert repr(rebuilt) == repr(expected)
    assert_same_tensors(model, rebuilt)


@pytest.mark.parametrize("index", range(len(ARGUMENTS)))
def test_arguments_that_are_not_the_defaults_come_back(index, tmp_path):
    model = ARGUMENTS[index]
    rebuilt = again(model, tmp_path / "model.pt")
    assert repr(rebuilt) == repr(model)
    assert_same_tensors(model, rebuilt)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.Dropout2d(0.2),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 8, batch_first=True),
        nn.Flatten(1),
        nn.Linear(64, 3),
    )


def train(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model.train()(torch.randn(5, 1, 4, 4)), torch.randint(3, (5,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), model.eval()(torch.ones(2, 1, 4, 4)).detach()]
    return seen


def test_a_rebuilt_module_trains_bit_for_bit_and_draws_nothing(tmp_path):
    model = network()
    before = torch.get_rng_state()
    rebuilt = again(model, tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(train(model), train(rebuilt), strict=True))
    assert_same_tensors(model, rebuilt)


def test_a_rebuilt_recurrent_network_uses_the_weights_that_it_trains(tmp_path):
    model = nn.GRU(3, 4, batch_first=True)
    rebuilt: Any = again(model, tmp_path / "model.pt")
    for each in (model, rebuilt):
        each(torch.ones(2, 5, 3))[0].sum().backward()
        with torch.no_grad():
            for parameter in each.parameters():
                parameter -= parameter.grad
    assert torch.equal(model(torch.ones(2, 5, 3))[0], rebuilt(torch.ones(2, 5, 3))[0])


def test_ties_shared_modules_and_frozen_parameters_stay(tmp_path):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4), nn.Embedding(4, 4))
    model[3].weight = model[4].weight
    model[3].bias.requires_grad_(False)
    rebuilt: Any = again(model, tmp_path / "model.pt")
    assert rebuilt[0] is rebuilt[2]
    assert rebuilt[3].weight is rebuilt[4].weight
    assert not rebuilt[3].bias.requires_grad
    assert len([*rebuilt.parameters()]) == len([*model.parameters()])


def test_other_types_names_and_the_mode_of_evaluation(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential()).double().eval()
    model.add_module("my-head", nn.BatchNorm1d(2).half().eval())
    rebuilt = again(model, tmp_path / "model.pt")
    assert rebuilt.training
    assert [name for name, _ in rebuilt.named_children()] == ["0", "1", "my-head"]
    assert_same_tensors(model, rebuilt)


def test_the_memory_is_its_own(tmp_path):
    model = nn.Linear(2, 2)
    rebuilt = again(model, tmp_path / "model.pt")
    with torch.no_grad():
        rebuilt.weight.zero_()
    assert torch.equal(again(model, tmp_path / "model.pt").weight, model.weight)


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        (3, "integer", True),
        (True, "integer", False),
        (3.0, "integer", False),
        (None, "integer or null", True),
        (3, "number", True),
        ((1, 2), "sizes", True),
        ((1, True), "sizes", False),
        ((), "sizes", False),
        ("same", "sizes or text", True),
    ],
)
def test_kinds_are_strict(value, kinds, expected):
    assert fits(value, kinds) is expected
