"""A fused model on disk: what is read back is what was written, with torch alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout
from fusion.graph.saving import load, read_weights, save, write_weights
from fusion.graph.tree import FusedTree
from tests.unit.fused_trees import Takes, assert_same, forked, step, tree_of

VECTOR = Feature((5,), Layout.VEC)


def inputs(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


class Head(nn.Module):
    """A task's answer of several parts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        y = self.drop(self.norm(x))
        return {"scores": self.linear(y), "states": (y, y.sum(1))}


def answering() -> FusedTree:
    """Two tasks, one of which answers with a dict; in training mode."""
    return tree_of(step("b0_0", None), step("b0_1", "b0_0", "age"), step("b1_1", "b0_0", "mood"), b1_1=Head())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fused") / "model"
    save(answering(), folder, inputs(4))
    return folder


def test_a_saved_tree_answers_bitwise_the_same_at_any_batch_size(folder):
    torch.manual_seed(0)
    tree = answering().eval()
    for rows in (1, 2, 5):
        expected, got = tree(inputs(rows)), load(folder)(inputs(rows))
        assert torch.equal(got["age"], expected["age"])
        assert torch.equal(got["mood"]["scores"], expected["mood"]["scores"])
        assert torch.equal(got["mood"]["states"][1], expected["mood"]["states"][1])


def test_each_task_has_a_file_of_its_own(folder):
    torch.manual_seed(0)
    tree = answering().eval()
    assert torch.equal(load(folder, task="age")(inputs(3)), tree(inputs(3))["age"])
    assert list(load(folder, task="mood")(inputs(3))) == ["scores", "states"]
    with pytest.raises(FusionError, match=r"expected tasks/pose.pt2 in .*model, there is none"):
        load(folder, task="pose")


def test_loads_with_torch_alone(folder, tmp_path):
    code = """
        import sys
        for name in ("fusion", "unified", "schedulers", "separator"):
            sys.modules[name] = None  # an import of it fails, wherever it is installed
        import torch
        folder, out = sys.argv[1:]
        answers = torch.export.load(folder + "/model.pt2").module()(torch.ones(6, 5))
        alone = torch.export.load(folder + "/tasks/mood.pt2").module()(torch.ones(6, 5))
        assert torch.equal(answers["mood"]["scores"], alone["scores"])
        torch.save(answers["age"], out)
    """
    out = tmp_path / "age.pt"
    command = [sys.executable, "-I", "-W", "ignore", "-c", textwrap.dedent(code), str(folder), str(out)]
    subprocess.run(command, cwd=tmp_path, check=True, env={"OMP_NUM_THREADS": "1"})
    torch.manual_seed(0)
    assert torch.equal(torch.load(out, weights_only=True), answering().eval()(torch.ones(6, 5))["age"])


def test_no_sample_is_in_the_files(tmp_path):
    sample = torch.full((1, 5), 1234.5)
    save(forked(), tmp_path, sample)
    assert not any(sample.numpy().tobytes()[:8] in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_weights_are_there_by_the_names_of_the_tree_and_of_each_model(folder):
    torch.manual_seed(0)
    tree = answering()
    assert_same(read_weights(folder / "model.safetensors"), tree.state_dict())
    assert_same(read_weights(folder / "tasks" / "mood.safetensors"), tree.split()["mood"].state_dict())
    assert "norm.running_mean" in load_file(folder / "tasks" / "mood.safetensors")


def test_steps_and_inputs_are_described(folder):
    described = json.loads((folder / "tree.json").read_text())
    assert described["tasks"] == ["age", "mood"]
    assert described["steps"][1] == {"name": "b0_1", "source": "b0_0", "needs": [], "task": "age"}
    assert described["inputs"] == {
        "names": None,
        "primary": 0,
        "features": [{"shape": [5], "layout": "vec", "dtype": "float32"}],
    }


def test_saving_changes_nothing_about_the_tree(tmp_path):
    tree = answering()
    tree.freeze(["b0_0"])
    before = {name: value.clone() for name, value in tree.state_dict().items()}
    save(tree, tmp_path, inputs(2))
    assert_same(tree.state_dict(), before)
    assert [name for name, node in tree.nodes.items() if not node.training] == ["b0_0"]
    assert [name for name, parameter in tree.named_parameters() if not parameter.requires_grad] == [
        "nodes.b0_0.linear.weight",
        "nodes.b0_0.linear.bias",
    ]


def test_inputs_by_name_are_called_by_name_again(tmp_path):
    signature = Takes(("mask", "pixels"), primary=1, features=(VECTOR, VECTOR))
    tree = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a", needs=(0,)), signature=signature)
    save(tree, tmp_path, {"pixels": inputs(1), "mask": inputs(1, seed=1)})  # one sample is example enough
    batch = {"mask": inputs(4), "pixels": inputs(4, seed=2)}
    assert_same(load(tmp_path)(**batch), tree(**batch))
    assert torch.equal(load(tmp_path, task="a")(**batch), tree(batch)["a"])


def test_positional_inputs_are_called_by_position_again(tmp_path):
    tree = tree_of(step("b0_0", None, needs=(1,)), step("b0_1", "b0_0", "a"))
    save(tree, tmp_path, (inputs(3), inputs(3, seed=1)))
    assert_same(load(tmp_path)(inputs(4), inputs(4, seed=1)), tree(inputs(4), inputs(4, seed=1)))


def test_ties_are_stored_once_and_come_back(tmp_path):
    whole = torch.randn(4, 3)
    tensors = {"b": whole, "a": whole, "part": whole[:2], "other": whole.clone(), "none": torch.empty(0)}
    write_weights(tensors, tmp_path / "tied.safetensors")
    back = read_weights(tmp_path / "tied.safetensors")
    assert_same(back, tensors)
    assert back["a"] is back["b"]
    assert back["other"] is not back["b"]
    assert set(load_file(tmp_path / "tied.safetensors")) == {"b", "part", "other", "none"}


class Restless(nn.Module):
    """Never answers twice the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counted(nn.Module):
    """Takes the number of samples for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x / float(len(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Restless(), r"model.pt2: read back, it answers otherwise at batch size 3: output \['a'\]"),
        (Counted(), "model.pt2: the batch size of input would be fixed at 2"),
    ],
)
def test_a_model_that_does_not_survive_is_refused_and_the_last_one_stays(module, message, tmp_path):
    save(forked(), tmp_path, inputs(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FusionError, match=message):
        save(tree_of(step("b0_0", None, "a"), b0_0=module), tmp_path, inputs(2))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".partial*"))


def test_a_task_that_is_no_file_name_is_refused(tmp_path):
    with pytest.raises(FusionError, match="these cannot be file names: 'a/b'"):
        save(tree_of(step("b0_0", None, "a/b")), tmp_path / "model", inputs(2))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("shape", [(0, 5), ()])
def test_examples_without_a_sample_are_refused(shape, tmp_path):
    with pytest.raises(FusionError, match="expected at least one sample in each example input, got shapes "):
        save(forked(), tmp_path / "model", torch.zeros(shape))


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="the extra is installed")
def test_onnx_without_its_extra_says_what_to_install(tmp_path):
    with pytest.raises(FusionError, match=r"writing ONNX needs onnx and onnxscript; .* pip install 'unifiednn\[onnx\]'"):
        save(forked(), tmp_path / "model", inputs(2), onnx=True)
    assert not (tmp_path / "model").exists()


def test_onnx_answers_as_the_tree_does(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tree = answering().eval()
    save(tree, tmp_path, inputs(2), onnx=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == ["age", "mood.scores", "mood.states.0", "mood.states.1"]
    age, scores, *_ = session.run(None, {session.get_inputs()[0].name: inputs(7).numpy()})
    # other kernels sum in another order
    torch.testing.assert_close(torch.as_tensor(age), tree(inputs(7))["age"].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(scores), tree(inputs(7))["mood"]["scores"].detach(), rtol=0, atol=1e-5)
