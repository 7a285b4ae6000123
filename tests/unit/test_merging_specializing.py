"""Plain networks for subsets of tasks: equal to the whole one, of exact size, and of torch alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.lowering import DENSE, GROUPED
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import Neurons, names_of, subsets
from fusion.merging.reconnect import own_groups, reconnect
from fusion.merging.resizing import resize
from fusion.merging.training import average_shared, recalibrate
from tests.unit.merging_networks import KINDS, LeNet, Mlp, ResNet, WithPrivate, inputs_of, random_merged, united

TOLERANCE = 1e-5  # the issue's; sums over other numbers of zeros round otherwise

seeds = st.integers(0, 10_000)
kinds = st.sampled_from(KINDS)


def every_subset(merged: MergedNetwork) -> list[tuple[str, ...]]:
    return [names_of(bits, merged.tasks) for bits in subsets(len(merged.tasks))]


def assert_equal(merged: MergedNetwork, inputs: Tensor, **options: object) -> None:
    with torch.no_grad():
        whole = merged(inputs)
        for tasks in every_subset(merged):
            answers = merged.specialize(tasks, **options)(inputs)
            assert tuple(answers) == tasks
            for task in tasks:
                torch.testing.assert_close(answers[task], whole[task], rtol=TOLERANCE, atol=TOLERANCE)


def counted(module: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return counter.get_total_flops() // len(inputs)


@settings(deadline=None, max_examples=10)
@given(kind=kinds, num_tasks=st.integers(1, 3), seed=seeds, lowering=st.sampled_from([GROUPED, DENSE]))
def test_every_subset_answers_as_the_whole(kind, num_tasks, seed, lowering):
    assert_equal(random_merged(kind, num_tasks, seed), inputs_of(kind, seed=seed), lowering=lowering)


@settings(deadline=None, max_examples=6)
@given(kind=kinds, num_tasks=st.integers(2, 3), seed=seeds)
def test_grouped_does_the_operations_that_are_counted(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    for tasks in every_subset(merged):
        grouped = merged.specialize(tasks, lowering=GROUPED)
        assert counted(grouped, inputs_of(kind)) == flops(merged, tasks)
        assert counted(merged.specialize(tasks, lowering=DENSE), inputs_of(kind)) >= flops(merged, tasks)


@settings(deadline=None, max_examples=6)
@given(kind=kinds, num_tasks=st.integers(2, 3), seed=seeds)
def test_resized_networks_are_cut_as_well(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    generator = torch.Generator().manual_seed(seed)
    kept, groups = {}, {}
    for space in merged.prunable:
        bits = merged.neurons[space].group
        is_whole = bits == (1 << num_tasks) - 1  # stay, so that no task is left without
        stays = is_whole | (torch.rand(len(bits), generator=generator) > 0.3)
        kept[space] = stays.nonzero().flatten()
        groups[space] = bits[stays] & ~(
            bits[stays] & 1 & ((torch.rand(int(stays.sum()), generator=generator) > 0.7) & ~is_whole[stays])
        )
        groups[space][groups[space] == 0] = 1  # its only task stays
    resize(merged, kept, groups)  # the order of the groups is no longer the one they were made in
    assert_equal(merged, inputs_of(kind), lowering=GROUPED)
    assert_equal(merged, inputs_of(kind), lowering=DENSE)
    assert all(
        counted(merged.specialize(t, lowering=GROUPED), inputs_of(kind)) == flops(merged, t) for t in every_subset(merged)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_after_training_too(kind):
    merged = random_merged(kind, 2, 0)
    before = merged.specialize("A", lowering=GROUPED)
    optimizer = torch.optim.Adam(merged.parameters(), lr=0.01)
    for step in range(3):
        merged.train()
        sum(answer.square().mean() for answer in merged(inputs_of(kind, 8, step)).values()).backward()
        average_shared(merged)
        optimizer.step()
        optimizer.zero_grad()
    recalibrate(merged, [inputs_of(kind, 8, 9)])
    merged.eval()
    assert_equal(merged, inputs_of(kind))
    inputs = inputs_of(kind)
    assert not torch.allclose(before(inputs)["A"], merged(inputs)["A"])  # a copy stays as it was


def test_neurons_that_may_read_nothing_have_their_bias():
    union = united(LeNet, 2)
    (first, second) = (number for number, space in union.spaces.items() if space.name in ("conv1", "conv2"))
    shared = own_groups(union, second)
    groups = {
        first: own_groups(union, first),  # exclusive alone: a shared neuron may read none of them
        second: Neurons(origin=shared.origin, index=shared.index, group=torch.tensor([1, 2, 3] * (len(shared) // 3))),
    }
    merged = reconnect(union, groups)
    for lowering in (GROUPED, DENSE):
        assert_equal(merged, inputs_of(LeNet), lowering=lowering)


def test_a_private_layer_reads_its_own_tasks_neurons_alone():
    merged = reconnect(united(WithPrivate, 2, private=("private",)))
    models = [WithPrivate(num_outputs=2 + task, width=4 + task, seed=task).eval() for task in range(2)]
    inputs = inputs_of(WithPrivate)
    for task, model in zip("AB", models, strict=True):
        torch.testing.assert_close(merged(inputs)[task], model(inputs))
    assert_equal(merged, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_alone_without_sharing_is_its_own_network(kind):
    merged, inputs = reconnect(united(kind, 2)), inputs_of(kind)
    model = kind(num_outputs=3, width=5, seed=1).eval()
    own = merged.specialize("B", single=True)
    torch.testing.assert_close(own(inputs), model(inputs), rtol=TOLERANCE, atol=TOLERANCE)
    assert {name: value.shape for name, value in model.named_parameters()} == {
        name.replace("_B.", "."): value.shape for name, value in own.named_parameters()
    }
    assert counted(own, inputs) == counted(model, inputs)


@pytest.mark.parametrize(("kind", "lowering"), [(LeNet, DENSE), (ResNet, GROUPED), (Mlp, GROUPED)])
def test_it_is_of_torch_alone_and_can_be_exported_compiled_and_trained(kind, lowering, tmp_path):
    merged = random_merged(kind, 3, 1)
    module = merged.specialize(["A", "C"], lowering=lowering)
    assert all(type(part).__module__.startswith("torch.") for part in list(module.modules())[1:])
    assert "fusion" not in module.code
    program = torch.export.export(module, (inputs_of(kind, 2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "program.pt2")
    exported = torch.export.load(tmp_path / "program.pt2").module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    inputs = inputs_of(kind, 5)
    for other in (exported, compiled, copy.deepcopy(module)):
        torch.testing.assert_close(other(inputs), module(inputs), rtol=0, atol=0)
    module.train()
    sum(answer.square().sum() for answer in module(inputs).values()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_shared_weights_take_no_memory_and_follow():
    merged = random_merged(LeNet, 2, 2)
    module = merged.specialize(["A", "B"], share=True)
    ours = {parameter.untyped_storage().data_ptr() for parameter in merged.parameters()}
    assert {parameter.untyped_storage().data_ptr() for parameter in module.parameters()} <= ours
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.mul_(1.5)
    assert_equal(merged, inputs_of(LeNet), share=True)
    inputs = inputs_of(LeNet)
    for task, answer in module(inputs).items():
        torch.testing.assert_close(answer, merged(inputs)[task], rtol=TOLERANCE, atol=TOLERANCE)
    copied = merged.specialize(["A", "B"], lowering=GROUPED)
    assert not {parameter.untyped_storage().data_ptr() for parameter in copied.parameters()} & ours


def test_measured_choices_are_told_remembered_and_can_be_repeated():
    merged = random_merged(ResNet, 2, 3)
    module = merged.specialize("AB", example=inputs_of(ResNet))
    chosen = module.meta["lowering"]
    assert set(chosen) == {"inner", "back", "down", "wide"}  # the first reads the input, which is everybody's
    assert set(chosen.values()) <= {GROUPED, DENSE}
    again = merged.specialize("AB", example=inputs_of(ResNet))
    assert len(merged.lowerings) == 1
    assert again.meta["lowering"] == chosen
    flipped = {name: GROUPED if choice == DENSE else DENSE for name, choice in chosen.items()}
    assert merged.specialize("AB", lowering=flipped).meta["lowering"] == flipped
    assert_equal(merged, inputs_of(ResNet), lowering={})  # what is not named is grouped
    resize(
        merged,
        {space: merged.neurons[space].group.argsort(stable=True).sort().values[1:] for space in list(merged.prunable)[:1]},
    )
    merged.specialize("AB", example=inputs_of(ResNet))
    assert len(merged.lowerings) == 2  # other sizes are measured anew


def test_neither_the_network_nor_the_random_state_changes():
    merged = random_merged(Mlp, 2, 4)
    before, state = copy.deepcopy(merged.state_dict()), torch.get_rng_state()
    module = merged.specialize("AB")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in merged.state_dict().items())


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "expected one or more of the tasks A, B; got none"),
        (["A", "X"], {}, "got unknown: X"),
        (["A", "B"], {"single": True}, "single=True answers one task; got A, B"),
        (["A"], {"lowering": "masked"}, "got 'masked'"),
        (["A"], {"lowering": {"nowhere": GROUPED, "conv2": "fast"}}, "got 'conv2': 'fast', 'nowhere': 'grouped'"),
    ],
)
def test_refusals(tasks, options, message):
    with pytest.raises(MergeError, match=message):
        random_merged(LeNet, 2, 0).specialize(tasks, **options)
