"""Merged networks on disk: whole again, no larger than their edges, and nothing forged gets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS
from fusion.merging.merged import MergedNetwork
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone, reconnect
from fusion.merging.saving import MANIFEST_NAME, load, read_manifest, save
from tests.unit.merging_networks import KINDS, LeNet, ResNet, WithPrivate, inputs_of, random_merged, united


def num_edges(merged: MergedNetwork) -> int:
    masks = []
    for position, step in enumerate(merged.steps):
        if step.kind in MAKERS:
            part = merged.part(position)
            masks.append((torch.ones_like(part.weight) if part.mask is None else part.mask.expand_as(part.weight)).sum())
    return int(sum(masks))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


@settings(deadline=None, max_examples=8)
@given(kind=st.sampled_from(KINDS), num_tasks=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_read_back_it_answers_bitwise_and_its_subsets_do(tmp_path_factory, kind, num_tasks, seed):
    folder, merged = tmp_path_factory.mktemp("merged"), random_merged(kind, num_tasks, seed)
    save(merged, folder, metadata={"alpha": 0.1, "seeds": [seed]})
    again, inputs = load(folder), inputs_of(kind)
    assert not again.training
    assert (again.tasks, again.steps, again.frozen) == (merged.tasks, merged.steps, merged.frozen)
    torch.testing.assert_close(again(inputs), merged(inputs), rtol=0, atol=0)
    torch.testing.assert_close(again.specialize("A")(inputs)["A"], merged(inputs)["A"], rtol=1e-5, atol=1e-5)
    for space, neurons in merged.neurons.items():
        assert all(
            torch.equal(getattr(again.neurons[space], part), getattr(neurons, part)) for part in ("origin", "index", "group")
        )
    assert read_manifest(folder)["metadata"] == {"alpha": 0.1, "seeds": [seed]}
    stored = [value.numel() for name, value in load_file(weights_of(folder)).items() if "/weight." in name]
    assert sum(stored) == num_edges(merged)  # no zeros that are none of the weights


def test_private_layers_and_infinite_arguments_are_kept(tmp_path):
    merged = reconnect(united(WithPrivate, 2, private=("private",)))
    save(merged, tmp_path)
    torch.testing.assert_close(load(tmp_path)(inputs_of(WithPrivate)), merged(inputs_of(WithPrivate)), rtol=0, atol=0)


def test_a_second_save_replaces_the_first_and_a_failed_one_does_not(tmp_path):
    inputs = inputs_of(LeNet)
    save(random_merged(LeNet, 2, 0), tmp_path)
    second = random_merged(LeNet, 2, 1)
    save(second, tmp_path)
    with pytest.raises(MergeError, match="metadata must be JSON"):
        save(random_merged(LeNet, 2, 2), tmp_path, metadata={"alpha": object()})
    torch.testing.assert_close(load(tmp_path)(inputs), second(inputs), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_NAME, weights_of(tmp_path).name]


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_a_file_cannot_name_is_refused_before_anything_is_written(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), Odd(), nn.Linear(3, 2))
    merged = alone(read_network(model, torch.randn(2, 4), name="A", private=["1"]))
    with pytest.raises(MergeError, match="cannot name the operator 'aten::special_bessel_j0'"):
        save(merged, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def forged(folder: Path, change) -> Path:
    """Save a network and change its manifest."""
    save(random_merged(ResNet, 2, 0), folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def step(manifest, kind):
    return next(entry for entry in manifest["steps"] if entry["kind"] == kind)


FORGERIES = {
    "another format": (lambda m: m.update(format="checkpoint"), "does not say 'merged network'"),
    "another version": (lambda m: m.update(version=2), "of version 2; this release reads version 1"),
    "an operator with effects": (lambda m: step(m, "each").update(operator="aten::from_file"), "cannot name the operator"),
    "an operator in place": (lambda m: step(m, "each").update(operator="aten::relu_"), "cannot name the operator"),
    "an operator with an output argument": (lambda m: step(m, "join").update(operator="aten::add.out"), "has no operator"),
    "another namespace": (lambda m: step(m, "each").update(operator="prims::relu"), "cannot name the operator"),
    "a path to an operator": (lambda m: step(m, "each").update(operator="aten::relu.__class__"), "has no operator"),
    "no operator": (lambda m: step(m, "each").update(operator=None), "has the operator None"),
    "another kind": (lambda m: step(m, "each").update(kind="conv"), "cannot name the operator"),
    "an unknown kind": (lambda m: step(m, "each").update(kind="code"), "'code' is not a valid Kind"),
    "an argument of unknown form": (lambda m: step(m, "each").update(arguments=[{"eval": "1"}]), "an argument of unknown form"),
    "a slot that is not there": (lambda m: step(m, "each").update(arguments=[{"slot": 4}]), "outside of their range"),
    "a tensor that is not there": (lambda m: step(m, "each").update(arguments=[{"held": "forward"}]), "used but not there"),
    "inputs from later steps": (lambda m: step(m, "each").update(inputs=[30]), "outside of their range"),
    "a task of its own": (lambda m: step(m, "conv").update(tasks=4), "outside of their range"),
    "tasks that do not match": (lambda m: step(m, "conv").update(tasks=1), "serves tasks that its inputs"),
    "another space": (lambda m: step(m, "norm").update(space=0), "changes its space"),
    "neurons of other tasks": (lambda m: m["spaces"][1]["group"].__setitem__(0, 3), "expected a block|no weights"),
    "neurons of no task": (lambda m: m["spaces"][1]["group"].__setitem__(0, 0), "outside of their range"),
    "numbers that are none": (lambda m: m["spaces"][1]["group"].__setitem__(0, 1.5), "expected whole numbers"),
    "fewer neurons": (
        lambda m: [m["spaces"][1][name].pop() for name in ("origin", "index", "group")],
        "weights|block|rows|shape|norm",
    ),
    "a layer's tensors": (lambda m: step(m, "conv").update(tensors=["bias", "hook"]), "has the tensors"),
    "weights of nobody": (lambda m: m["steps"].pop(), "output|weights that belong to no layer|range"),
    "other FLOPs": (lambda m: m["flops"][0].update(flops=1), "not those that it tells"),
    "too many tasks": (
        lambda m: m.update(tasks=[str(number) for number in range(60)]),
        "not a number of FLOPs for every subset",
    ),
    "a task twice": (lambda m: m.update(tasks=["A", "A"]), "tasks"),
    "another output": (lambda m: m["outputs"].update(A=m["outputs"]["B"]), "does not serve it"),
    "a way out of the folder": (lambda m: m["weights"].update(file="../weights.safetensors"), "no name of a file of weights"),
    "another file": (lambda m: m["weights"].update(file="weights-0123456789abcdef.safetensors"), "there is no file"),
    "another content": (lambda m: m["weights"].update(sha256="0" * 64), "not the file that was written with it"),
    "nothing": (lambda m: m.pop("spaces"), "KeyError: 'spaces'"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_manifests_are_refused(tmp_path, name):
    change, message = FORGERIES[name]
    with pytest.raises(MergeError, match=message):
        load(forged(tmp_path, change))


def test_weights_that_do_not_belong_to_the_manifest_are_refused(tmp_path):
    save(random_merged(LeNet, 2, 0), tmp_path)
    path = weights_of(tmp_path)
    tensors = load_file(path)
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    with pytest.raises(MergeError, match="not the file that was written with it"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(MergeError, match="there is no file"):
        load(tmp_path)


def test_where_nothing_was_saved(tmp_path):
    with pytest.raises(MergeError, match="was a merged network saved there"):
        load(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(MergeError, match="is no JSON"):
        load(tmp_path)
