"""A fused tree against each task's path run on its own."""

from __future__ import annotations

import copy
import random
import weakref

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.tree import FusedTree, Step
from tests.unit.fused_trees import Takes, assert_same, forked, naively, step, tree_of


def num_runs(tree: FusedTree) -> dict[str, int]:
    return {name: node.num_runs for name, node in tree.nodes.items()}


def random_steps(rng: random.Random, num_tasks: int) -> list[Step]:
    """Grow a random tree of more steps than needed; some serve no task."""
    steps: list[Step] = []
    for number in range(rng.randint(num_tasks, 4 * num_tasks)):
        source = rng.choice([None, *(s.name for s in steps)])
        steps.append(step(f"b0_{number}", source, needs=(1,) if rng.random() < 0.2 else ()))
    ends = [step(f"b{task + 1}_0", rng.choice([s.name for s in steps] or [None]), f"task {task}") for task in range(num_tasks)]
    steps += ends
    rng.shuffle(steps)
    return steps


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 6, 7, 8])
def test_random_trees_up_to_8_tasks_match_reference(num_tasks):
    rng = random.Random(num_tasks)
    inputs = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5))
    for _ in range(12):
        tree = tree_of(*random_steps(rng, num_tasks))
        outputs = tree.run(inputs)
        assert set(num_runs(tree).values()) == {1}
        assert_same(outputs, naively(tree, inputs))
        some = rng.sample(tree.tasks, rng.randint(1, num_tasks))
        assert_same(tree(*inputs, tasks=some), {task: outputs[task] for task in some})
        assert_same(tree.only(*some)(*inputs), {task: outputs[task] for task in some})
        known_name = rng.choice([s.name for s in tree.steps])
        known = {known_name: value_of(tree, known_name, inputs)}
        assert_same(tree.run(inputs, known=known), outputs)
        for task, model in tree.split().items():
            assert torch.equal(model(*inputs), outputs[task])


def value_of(tree: FusedTree, name: str, inputs: tuple[Tensor, ...]) -> Tensor:
    values: list[Tensor] = []
    handle = tree.nodes[name].register_forward_hook(lambda module, args, output: values.append(output))
    tree.run(inputs)
    handle.remove()
    return values[0]


def test_shared_steps_run_once():
    tree = forked()
    tree(torch.ones(2, 5))
    assert num_runs(tree) == {"b0_0": 1, "b0_1": 1, "b0_2": 1, "b1_2": 1, "a0_0_2_1": 1, "b2_1": 1}


def test_only_what_a_task_needs_is_run():
    tree = forked()
    assert list(tree(torch.ones(2, 5), tasks=["c"])) == ["c"]
    assert [name for name, runs in num_runs(tree).items() if runs] == ["b0_0", "a0_0_2_1", "b2_1"]


def test_outputs_come_in_the_order_asked_for():
    assert list(forked()(torch.ones(2, 5), tasks=("c", "a"))) == ["c", "a"]


def test_known_features_spare_what_only_feeds_them():
    tree = forked()
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    expected = tree(x)
    known = {name: value_of(tree, name, (x,)) for name in ("b0_1", "a0_0_2_1")}
    for node in tree.nodes.values():
        node.num_runs = 0
    assert_same(tree.run((), known=known), expected)
    assert [name for name, runs in num_runs(tree).items() if runs] == ["b0_2", "b1_2", "b2_1"]


def test_a_known_feature_that_is_not_wanted_changes_nothing():
    tree = forked()
    x = torch.ones(2, 5)
    assert_same(tree.run((x,), tasks=["c"], known={"b0_1": torch.zeros(2, 5)}), tree(x, tasks=["c"]))


def test_the_output_of_a_task_may_be_known():
    tree, answer = forked(), torch.zeros(2, 5)
    assert tree.run((torch.ones(2, 5),), known={"b0_2": answer})["a"] is answer
    assert tree.nodes["b0_2"].num_runs == 0


def test_values_are_let_go_with_their_last_consumer():
    alive: dict[str, list[str]] = {}
    values: dict[str, weakref.ref[Tensor]] = {}

    class Watching(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            alive[self.name] = [name for name, value in values.items() if value() is not None]
            y = x + 1
            values[self.name] = weakref.ref(y)
            return y

    steps = forked().steps
    tree = FusedTree(steps, {s.name: Watching(s.name) for s in steps}, tasks=("a", "b", "c"), signature=Takes())
    with torch.no_grad():
        tree.run((torch.ones(2, 5),), tasks=["a", "b", "c"])
    assert alive == {
        "b0_0": [],
        "b0_1": ["b0_0"],
        "b0_2": ["b0_0", "b0_1"],
        "b1_2": ["b0_0", "b0_1", "b0_2"],
        "a0_0_2_1": ["b0_0", "b0_2", "b1_2"],  # b0_1 is gone, the rest are answers
        "b2_1": ["b0_2", "b1_2", "a0_0_2_1"],
    }


def test_raw_inputs_go_where_they_are_needed():
    steps = (step("b0_0", None, needs=(0, 2)), step("b0_1", "b0_0", "a", needs=(2,)))
    tree = tree_of(*steps, signature=Takes(("mask", "pixels", "bias"), primary=1))
    inputs = tuple(torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    expected = naively(tree, inputs)
    assert_same(tree(pixels=inputs[1], bias=inputs[2], mask=inputs[0]), expected)
    assert_same(tree({"pixels": inputs[1], "bias": inputs[2], "mask": inputs[0]}), expected)
    with pytest.raises(FusionError, match="all inputs by position or all by name, got 1 and bias, mask"):
        tree(inputs[1], bias=inputs[2], mask=inputs[0])


def test_what_serves_no_task_is_not_registered():
    tree = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a"), step("b0_2", "b0_0"))
    assert [s.name for s in tree.steps] == list(tree.nodes) == ["b0_0", "b0_1"]


def test_tasks_of_each_step():
    assert forked().tasks_of() == {
        "b0_0": {"a", "b", "c"},
        "b0_1": {"a", "b"},
        "b0_2": {"a"},
        "b1_2": {"b"},
        "a0_0_2_1": {"c"},
        "b2_1": {"c"},
    }


def test_only_is_a_copy_without_the_rest():
    tree = forked()
    part = tree.only("c")
    assert part.tasks == ("c",)
    assert list(part.nodes) == ["b0_0", "a0_0_2_1", "b2_1"]
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in tree.parameters())


def test_modes_and_frozen_steps_survive_copies():
    tree = forked().eval()
    tree.freeze(["b0_0", "b0_1"])
    for made in (copy.deepcopy(tree), tree.only("c")):
        assert not any(module.training for module in made.modules())
        made.train()
        assert [name for name, node in made.nodes.items() if not node.training] == sorted(made.frozen)
        made.freeze(())
        assert all(parameter.requires_grad for parameter in made.parameters())
    assert not tree.nodes["b0_0"].linear.weight.requires_grad


class Statistics(nn.Sequential):
    """A block whose buffers move in training."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))


def test_frozen_buffers_unchanged_by_training():
    modules = {name: Statistics() for name in ("b0_0", "b0_1", "b1_1")}
    tree = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a"), step("b1_1", "b0_0", "b"), **modules)
    tree.freeze(["b0_0", "b1_1"])
    before = copy.deepcopy(tree.state_dict())
    optimizer = torch.optim.SGD([p for p in tree.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        tree.eval()
        tree.train()
        sum(output.square().sum() for output in tree(torch.randn(4, 5)).values()).backward()
        optimizer.step()
    changed = {name.rsplit(".", 2)[0] for name, value in tree.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"nodes.b0_1"}


def test_freezing_again_takes_the_place_of_the_last_time():
    tree = forked()
    tree.nodes["b0_1"].linear.bias.requires_grad_(False)  # by its owner
    tree.freeze(["b0_0", "b0_1"])
    tree.freeze(["b0_2"])
    frozen = [name for name, parameter in tree.named_parameters() if not parameter.requires_grad]
    assert frozen == ["nodes.b0_1.linear.bias", "nodes.b0_2.linear.weight", "nodes.b0_2.linear.bias"]
    assert [name for name, node in tree.nodes.items() if not node.training] == ["b0_2"]
    with pytest.raises(FusionError, match="no such step in this tree: b9_9; it has b0_0"):
        tree.freeze(["b9_9"])


def tied() -> FusedTree:
    tree = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a"), step("b1_1", "b0_0", "b"))
    tree.nodes["b0_1"].linear.weight = tree.nodes["b0_0"].linear.weight
    return tree


def test_tied_weights_stay_tied_and_count_once():
    for tree in (tied(), copy.deepcopy(tied()), tied().only("b", "a"), tied().split()["a"].tree):
        assert tree.nodes["b0_1"].linear.weight is tree.nodes["b0_0"].linear.weight
    assert sum(parameter.numel() for parameter in tied().parameters()) == 2 * 25 + 3 * 5
    assert "nodes.b0_1.linear.weight" in tied().state_dict()


class Named(nn.Module):
    """Linear maps under the names that they have in a model; a shared one may have several."""

    def __init__(self, **maps: nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(maps)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


def maps(*names: str) -> Named:
    return Named(**{name: nn.Linear(5, 5, bias=False) for name in names})


def test_a_task_has_the_names_of_its_own_model():
    tree = tree_of(
        step("b0_0", None),
        step("b1_1", "b0_0"),
        step("ar_1_3", "b1_1"),
        step("b1_2", "ar_1_3", "a"),
        b0_0=maps("stem"),
        b1_1=maps("body"),
        ar_1_3=maps("adapt"),
        b1_2=maps("head"),
    )
    model = tree.split()["a"]
    names = ["layers.stem.weight", "layers.body.weight", "ar_1_3.layers.adapt.weight", "layers.head.weight"]
    assert list(model.state_dict()) == names
    outer = nn.ModuleDict({"inner": model})
    assert list(outer.state_dict()) == [f"inner.{name}" for name in names]
    state = {name: torch.full_like(value, number) for number, (name, value) in enumerate(outer.state_dict().items())}
    assert not any(outer.load_state_dict(state))
    assert [int(parameter[0, 0]) for parameter in model.parameters()] == [0, 1, 2, 3]
    assert not any(copy.deepcopy(model).load_state_dict(model.state_dict()))


def test_a_name_that_is_taken_is_not_given_to_another_models_weight():
    tree = tree_of(
        step("b0_0", None),
        step("b0_1", "b0_0"),
        step("b1_1", "b0_1", "a"),
        b0_0=maps("stem"),
        b0_1=maps("body"),
        b1_1=maps("body", "head"),
    )
    assert list(tree.split()["a"].state_dict()) == [
        "b0_0.layers.stem.weight",
        "b0_1.layers.body.weight",
        "layers.body.weight",
        "layers.head.weight",
    ]


def test_constants_of_two_blocks_under_one_name_are_both_kept():
    tree = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a"), b0_0=maps("c"), b0_1=maps("c", "d"))
    model = tree.split()["a"]
    assert list(model.state_dict()) == ["layers.c.weight", "b0_1.layers.c.weight", "b0_1.layers.d.weight"]
    assert not any(model.load_state_dict(model.state_dict()))


def test_a_tie_within_a_task_has_each_of_its_names_once():
    first, second = maps("embed"), maps("embed", "head")
    second.layers["embed"].weight = second.layers["head"].weight = first.layers["embed"].weight
    model = tree_of(step("b0_0", None), step("b0_1", "b0_0", "a"), b0_0=first, b0_1=second).split()["a"]
    assert list(model.state_dict()) == ["layers.embed.weight", "layers.head.weight"]
    assert len(list(model.parameters())) == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("b0_0", None, "a"), step("b0_0", None, "b")], "two steps are called 'b0_0'"),
        ([step("b0_1", "b0_0", "a")], "step 'b0_1' takes the output of 'b0_0', which is no step"),
        ([step("b0_0", None, "a"), step("b0_1", None, "a")], "task 'a' has 2 outputs, expected 1"),
        ([step("b0_0", "b0_1"), step("b0_1", "b0_0", "a")], "step 'b0_0' cannot be reached from the inputs"),
        ([step("x", None, "a")], "expected steps called b1_2"),
        ([], "expected at least one task"),
    ],
)
def test_steps_that_are_no_tree_are_refused(steps, message):
    with pytest.raises(FusionError, match=message):
        FusedTree(steps, {s.name: nn.Identity() for s in steps}, tasks={s.task: 0 for s in steps if s.task}, signature=Takes())


def test_a_task_that_is_not_there_is_refused():
    for call in (forked().only, lambda task: forked()(torch.ones(1, 5), tasks=[task])):
        with pytest.raises(FusionError, match="expected some of the tasks a, b, c; got d"):
            call("d")


def test_a_fused_tree_can_be_exported_as_any_module():
    tree, batch = forked().eval(), torch.export.Dim("batch")
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(tree, (x[:2],), dynamic_shapes={"args": ({0: batch},)}, strict=False)
    assert_same(program.module()(x), tree(x))
