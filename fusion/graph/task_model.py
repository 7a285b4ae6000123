"""One task of a fused tree as a model of its own, under the names that its owner knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from fusion.graph.tree import FusedTree


class TaskModel(nn.Module):
    """A model that returns the output of one task, as the model that was fused did.

    Its state dict has the names of the task's own model for the blocks of that model. Blocks of other models keep the names
    that they had there, so that where equal models share a prefix the result fits the user's class; if one of those names
    is taken already, they stand under the names of their steps (``b0_3.conv.weight``), as adapters always do. Tied weights
    have each of their names. What a model never uses is not there.

    Attributes:
        task: Name of the task.
        tree: What answers it.
        names: For each key of the tree's state dict the ones here.

    Args:
        tree: With one task; it is taken as it is, not copied.
    """

    def __init__(self, tree: FusedTree) -> None:
        super().__init__()
        (self.task,) = tree.tasks
        self.tree = tree
        self.training = tree.training
        self.names = original_names(tree)
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the task; the inputs are given as its model takes them."""
        return self.tree(*args, **kwargs)[self.task]

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return the output of the task from raw inputs in the order of the signature."""
        return self.tree.run(inputs)[self.task]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the weights under their original names."""
        assert not args, "torch has given up positional arguments here"
        state = {} if destination is None else destination
        for inner, value in self.tree.state_dict(keep_vars=keep_vars).items():
            state |= {prefix + name: value for name in self.names[inner]}
        return state


def _rename(model: TaskModel, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give loaded entries the names that they have in the tree; torch calls this before it looks for them there."""
    given = {name: state_dict.pop(prefix + name) for name in _flat(model.names) if prefix + name in state_dict}
    for inner, names in model.names.items():
        state_dict.update({f"{prefix}tree.{inner}": given[name] for name in names if name in given})


def original_names(tree: FusedTree) -> dict[str, tuple[str, ...]]:
    """Return for each key of the state dict of ``tree``, which has one task, the names that it has in that task's model."""
    state = tree.state_dict(keep_vars=True)
    by_step: dict[str, list[str]] = {step.name: [] for step in tree.steps}
    for key in state:
        by_step[key.split(".", 2)[1]].append(key)
    own = _model_of(next(step.name for step in tree.steps if step.task is not None))
    ours = [keys for step, keys in by_step.items() if _model_of(step) == own]
    theirs = [key for step, keys in by_step.items() if _model_of(step) not in (own, None) for key in keys]
    names: dict[str, tuple[str, ...]] = {key: (key.split(".", 1)[1],) for key in state}
    taken: dict[str, Tensor] = {}
    for keys in (*ours, theirs):  # other models' blocks keep their names all together or not at all
        original = {key: (key.split(".", 2)[2], *tree.aliases.get(key, ())) for key in keys}
        wanted = {name: taken.get(name, state[key]) for key in reversed(keys) for name in original[key]}
        if all(wanted[name] is state[key] for key in keys for name in original[key]):
            taken |= wanted
            names |= original
    return names


def _flat(names: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {name for group in names.values() for name in group}


def _model_of(step: str) -> str | None:
    """Return the number, as text, of the model that a block came from; None for an adapter."""
    return step[1:].split("_")[0] if step.startswith("b") else None
