"""Targets C4-C6: training steps of captured models, sharing at every boundary, files of models and trees (design 3.2, 3.3)."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.fusion_coverage_rows import UNTRACED_BATCH, difference, tensors, without_folders
from benchmarks.fusion_zoo import EXAMPLE_BATCH, Values, ZooModel, call, images, seeded
from fusion.graph.block import BlockSequence
from fusion.graph.parse import parse
from fusion.graph.saving import ONNX_NAME, load, save
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph, original
from fusion.search.build import build, space_of
from fusion.search.flops import block_flops
from fusion.search.mutation import Pair, mutate

TRAINED = ("resnet18", "efficientnet_b0", "bert", "t5", "encoder_layers", "convnextv2_atto", "loop_cnn")
FILED = ("resnet18", "bert", "vit_tiny_patch16_224")
NUM_STEPS = 2
_PICTURES = images(64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCheck:
    """Two steps of a captured model against the same of the model, from the same weights and random numbers.

    Attributes:
        name: Of the model.
        difference: Largest of a parameter or buffer afterwards; infinite if names differ.
        stale_buffers: Buffers that differ.
    """

    name: str
    difference: float
    stale_buffers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """A model exported to ``.pt2``, read back and captured.

    Attributes:
        name: Of the model.
        is_dynamic: Whether the file takes any batch.
        difference: Largest of the outputs to the model's, at a batch that is not the file's.
        message: Why it failed; empty if it did not.
    """

    name: str
    is_dynamic: bool
    difference: float
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCheck:
    """A tree of three families, written and read back, at a batch that was not traced.

    Attributes:
        export_difference: Of what the files answer to what the tree does.
        onnx_difference: Of ONNX Runtime to the tree, over the largest output; None without the extra.
        num_adapters: Adapters in the tree.
    """

    export_difference: float
    onnx_difference: float | None
    num_adapters: int


def check_training(entry: ZooModel) -> TrainCheck:
    """Train a model and its blocks for two steps of SGD with momentum."""
    model = entry.build().train()
    sequence = parse(copy.deepcopy(model), entry.inputs(), name=entry.name, primary=entry.primary).train()
    for module in (model, sequence):
        _train(module, entry)
    expected, found = model.state_dict(), sequence.state_dict()
    if expected.keys() != found.keys():
        return TrainCheck(name=entry.name, difference=float("inf"), stale_buffers=len(expected.keys() ^ found.keys()))
    buffers = dict(model.named_buffers())
    stale = sum(not torch.equal(expected[name], found[name]) for name in expected if name in buffers)
    worst = max((expected[name].double() - found[name].double()).abs().max().item() for name in expected)
    return TrainCheck(name=entry.name, difference=worst, stale_buffers=stale)


def check_boundaries() -> list[bool]:
    """Return for each boundary of two ResNet-18s with one trunk and two heads whether sharing there changes no bit."""
    build_resnet = _torchvision("resnet18", num_classes=10)
    first = build_resnet()
    second = copy.deepcopy(first)
    assert isinstance(second.fc, nn.Linear)
    second.fc = seeded(lambda: nn.Linear(512, 5), lambda batch=2, *, seed=0: torch.zeros(batch, 512))()
    models = {"first": first, "second": second}
    sequences = [parse(model, _PICTURES(), name=name) for name, model in models.items()]
    found = []
    for op in range(1, len(sequences[0].blocks)):
        graph = mutate(_graph(sequences), Pair(host=BlockId(0, op), guest=BlockId(1, op)))
        found.append(_is_bitwise(build(graph, sequences, seed=0).eval(), models))
    return found


def check_tree() -> TreeCheck:
    """Fuse a ResNet, a VGG and a ViT with chained shares, write the tree and compare what the files answer."""
    models = {
        "resnet": _torchvision("resnet18", num_classes=10)(),
        "vgg": _torchvision("vgg13_bn", num_classes=4)(),
        "vit": _vit()(),
    }
    sequences = [parse(model, _PICTURES(), name=name) for name, model in models.items()]
    graph = mutate(_graph(sequences), Pair(host=BlockId(0, 3), guest=BlockId(1, 3)))
    graph = mutate(graph, Pair(host=BlockId(1, 5), guest=BlockId(2, 3)))
    tree = build(graph, sequences, seed=0).eval()
    values = _PICTURES(UNTRACED_BATCH + 2, seed=3)
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(tree, Path(folder), _PICTURES(), onnx=has_onnx)
        expected = tree(values)
        answers = [difference(expected, load(Path(folder))(values))]
        answers += [difference(expected[task], load(Path(folder), task=task)(values)) for task in models]
        onnx = _onnx_difference(Path(folder) / ONNX_NAME, values, expected) if has_onnx else None
    return TreeCheck(export_difference=max(answers), onnx_difference=onnx, num_adapters=len(graph.adapters()))


def check_file(entry: ZooModel, *, is_dynamic: bool) -> FileCheck:
    """Export a model, read it back, take it apart and compare at a batch of another size."""
    model = entry.build()
    values = entry.inputs()
    names = tuple(values) if isinstance(values, Mapping) else None
    wrapped, args = _Tensors(model, names), _by_position(values)
    shapes = (({0: Dim.AUTO},) * len(args),) if is_dynamic else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(torch.export.export(wrapped, args, dynamic_shapes=shapes, strict=False), path)
        program = torch.export.load(path)
    other = entry.inputs(2 * EXAMPLE_BATCH + 1, seed=6)
    try:
        sequence = parse(program, args, name=entry.name).eval()
        with torch.no_grad():
            found = difference(tensors(call(model, other)), tensors(sequence(*_by_position(other))))
    except Exception as error:  # noqa: BLE001  a failure is a finding
        return FileCheck(name=entry.name, is_dynamic=is_dynamic, difference=float("inf"), message=without_folders(str(error)))
    return FileCheck(name=entry.name, is_dynamic=is_dynamic, difference=found)


def _train(module: nn.Module, entry: ZooModel) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    with torch.random.fork_rng(devices=[]):
        for step in range(NUM_STEPS):
            torch.manual_seed(step)
            outputs = tensors(call(module, entry.inputs(4, seed=step)))
            loss = torch.stack([value.square().mean() for value in outputs if value.is_floating_point()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _graph(sequences: Sequence[BlockSequence]) -> Graph:
    return original(space_of(sequences, [block_flops(sequence, (_PICTURES(),)) for sequence in sequences]))


@torch.no_grad()
def _is_bitwise(tree: FusedTree, models: dict[str, nn.Module]) -> bool:
    values = _PICTURES(UNTRACED_BATCH, seed=2)
    answers = tree(values)
    alone = {task: tree(values, tasks=(task,))[task] for task in models}
    return all(
        torch.equal(answers[task], model(values)) and torch.equal(alone[task], model(values)) for task, model in models.items()
    )


def _onnx_difference(path: Path, values: Tensor, expected: dict[str, Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(list(expected), {session.get_inputs()[0].name: values.numpy()})
    scale = max(value.abs().max().item() for value in expected.values())
    return difference(list(expected.values()), [torch.from_numpy(answer) for answer in answers]) / max(scale, 1.0)


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return getattr(importlib.import_module("torchvision.models"), name)(weights=None, **arguments)

    return seeded(make, _PICTURES)


def _vit() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        kind = importlib.import_module("torchvision.models").VisionTransformer
        return kind(image_size=64, patch_size=8, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=7)

    return seeded(make, _PICTURES)


class _Tensors(nn.Module):
    """A model that takes its inputs by position and answers with its tensors alone, as a file can hold them."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(call(self.model, inputs if self.names is None else dict(zip(self.names, inputs, strict=True)))))


def _by_position(values: Values) -> tuple[Tensor, ...]:
    if isinstance(values, Tensor):
        return (values,)
    return tuple(values.values()) if isinstance(values, Mapping) else values
