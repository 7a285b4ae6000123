"""Make a fused tree faster without changing what it answers: the pass behind the search.

Batch norms and channel maps of adapters are folded into the weights next to them, adapters that became the identity are
dropped. Each step is undone if the block that it changed answers differently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fusion.graph.block import Block, Inputs
from fusion.graph.collapse import is_identity
from fusion.graph.feature import needs_map
from fusion.graph.flop_counter import FlopCounter
from fusion.graph.resample import Resample
from fusion.graph.rescale import Rescale
from fusion.graph.tree import FusedTree, Step
from fusion.graph.weight_folding import fold_batch_norms, fold_channel_map

TOLERANCE = 1e-5  # of a difference, relative to the largest value of an output


@dataclass(frozen=True, slots=True, kw_only=True)
class Simplified:
    """A tree for inference and how it came about.

    Attributes:
        tree: in evaluation mode. It cannot train as its blocks could: their batch norms are gone.
        done: one sentence for each change made, and for each that was undone.
    """

    tree: FusedTree
    done: tuple[str, ...]


def simplify(tree: FusedTree, example_inputs: Inputs) -> Simplified:
    """Make a copy of a tree with fewer operators that answers as the tree does in evaluation.

    Args:
        tree: it is not changed, and the copy shares no storage with it.
        example_inputs: as the fused models take them, each `(batch, ...)`; all changes are checked on them.

    Returns:
        The copy, whose outputs are within 1e-5 of the tree's, relative to the largest value of each output; if they are
        not, it has no changes.
    """
    copied = tree.only(*tree.tasks).eval()
    inputs = tree.signature.flatten(example_inputs)
    with torch.no_grad():
        expected, calls = _recorded(copied, inputs)
        work = _Work(list(copied.steps), dict(copied.nodes.items()), calls, [])
        _drop_identities(work)
        _fold_norms(work)
        _fold_maps(work)
        result = FusedTree(work.steps, work.modules, tasks=tree.tasks, signature=tree.signature).eval()
        difference = _difference(expected, result.run(inputs))
    if difference <= TOLERANCE:
        return Simplified(tree=result, done=tuple(work.done))
    undone = f"all undone: outputs would differ by {difference:.1e} of the largest"
    return Simplified(tree=copied, done=(*work.done, undone) if work.done else ())


@dataclass(frozen=True, slots=True)
class _Work:
    """A tree while it is changed."""

    steps: list[Step]
    modules: dict[str, nn.Module]
    calls: Mapping[str, tuple[Tensor, ...]]  # what each step got
    done: list[str]

    def users(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.source == name]

    def drop(self, name: str) -> None:
        """Take a step out; whoever took its result takes its input."""
        gone = next(step for step in self.steps if step.name == name)
        self.steps[:] = [
            dataclasses.replace(step, source=gone.source) if step.source == name else step
            for step in self.steps
            if step is not gone
        ]
        del self.modules[name]


def _recorded(tree: FusedTree, inputs: Sequence[Tensor]) -> tuple[dict[str, Any], dict[str, tuple[Tensor, ...]]]:
    """Run a tree and note what each of its steps gets."""
    calls: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.__setitem__(name, args))
        for name, module in tree.nodes.items()
    ]
    try:
        return tree.run(inputs), calls
    finally:
        for hook in hooks:
            hook.remove()


def _drop_identities(work: _Work) -> None:
    for name, module in list(work.modules.items()):
        if isinstance(module, Rescale) and is_identity(module):
            work.drop(name)
            work.done.append(f"{name} dropped: it is the identity")


def _fold_norms(work: _Work) -> None:
    for name, block in list(work.modules.items()):
        if not isinstance(block, Block):
            continue
        folded, count = fold_batch_norms(block)
        if not count:
            continue
        what = f"{name} ({block.name}): {count} batch norm{'s' * (count > 1)} folded"
        difference = _difference(block(*work.calls[name]), folded(*work.calls[name]))
        if difference <= TOLERANCE:
            work.modules[name] = folded
            work.done.append(what)
        else:
            work.done.append(f"{what}; undone: its output would differ by {difference:.1e} of the largest")


def _fold_maps(work: _Work) -> None:
    for name, adapter in list(work.modules.items()):
        users = work.users(name)
        block = work.modules[users[0].name] if len(users) == 1 else None
        if not isinstance(adapter, Rescale) or not isinstance(block, Block) or adapter.source.dtype != adapter.target.dtype:
            continue
        folded = fold_channel_map(adapter, block)
        if folded is None:
            continue
        resample = Resample(adapter.source, folded.input)
        before = nn.Sequential(adapter), block
        x, (_, *side) = work.calls[name][0], work.calls[users[0].name]
        expected, old_flops = _counted(*before, x, side)
        got, new_flops = _counted(nn.Sequential(resample), folded, x, side)
        if new_flops > old_flops or _difference(expected, got) > TOLERANCE:
            continue
        work.modules[users[0].name] = folded
        work.modules[name] = resample
        if not needs_map(adapter.source, folded.input):
            work.drop(name)
        work.done.append(f"{name}: channel map folded into {users[0].name} ({block.name})")


def _counted(adapter: nn.Module, block: Block, x: Tensor, side: Sequence[Tensor]) -> tuple[Any, int]:
    with FlopCounter() as counter:
        output = block(adapter(x), *side)
    return output, counter.get_total_flops()


def _difference(expected: Any, got: Any) -> float:
    """Return the largest difference of an output, relative to the largest value of that output."""
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True)
    return max((_relative(left, right) for left, right in pairs if isinstance(left, Tensor) and left.numel()), default=0.0)


def _relative(expected: Tensor, got: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else math.inf
    left, right = expected.double(), got.double()
    difference = torch.where(left == right, 0.0, (left - right).abs()).max().item()  # equal infinities differ by nothing
    return math.inf if math.isnan(difference) else difference / max(left.abs().max().item(), 1e-30)
