"""The merging benchmark's panels, networks and single trainings."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.merging_data import (
    INCLUSION,
    NUM_PANELS,
    RELATEDNESS,
    THREE_TASKS,
    TWO_TASKS,
    Items,
    PanelData,
    Predicate,
    Tasks,
    draw_panels,
    labels_of,
    load_items,
    seeded_panels,
)
from benchmarks.merging_models import NETWORKS, LeNet5
from benchmarks.merging_singles import Recipe, Single, accuracy, cached_single, train_single

DATA = Path(os.environ.get("UNIFIED_DATA", ""))
needs_data = pytest.mark.skipif(
    not os.environ.get("UNIFIED_DATA") or not (DATA / "data" / "fashion-mnist").is_dir(),
    reason="UNIFIED_DATA names no folder with data/fashion-mnist/",
)


@pytest.fixture(scope="module")
def items() -> dict[str, Items]:
    return load_items(DATA)


@pytest.fixture(scope="module")
def panels(items: dict[str, Items]) -> PanelData:
    return seeded_panels(items, seed=0)


@needs_data
def test_the_panels_have_the_shapes_of_the_design(panels: PanelData) -> None:
    for split, count in NUM_PANELS.items():
        drawn = getattr(panels, split)
        assert drawn.inputs.shape == (count, 1, 28, 112)
        assert drawn.inputs.dtype == torch.float32
        assert {task: labels.shape for task, labels in drawn.labels.items()} == {"A": (count, 5), "B": (count, 5)}
        assert all(labels.dtype == torch.float32 for labels in drawn.labels.values())


@needs_data
def test_every_bit_is_one_as_often_as_four_draws_of_ten_classes_say(panels: PanelData) -> None:
    rate = 1 - 0.9**4
    for split, count in NUM_PANELS.items():
        found = torch.cat(list(getattr(panels, split).labels.values()), dim=1).mean(0)
        # Five standard errors; the classes' own shares of the items are within 2 % of a tenth.
        bound = 5 * math.sqrt(rate * (1 - rate) / count) + 0.02 * rate
        assert (found - rate).abs().max() < bound


@needs_data
def test_no_item_is_in_two_splits(items: dict[str, Items]) -> None:
    pictures = {split: {each.numpy().tobytes() for each in some.pixels} for split, some in items.items()}
    assert {split: len(each) for split, each in pictures.items()} == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert all(first.isdisjoint(second) for first, second in combinations(pictures.values(), 2))


@needs_data
def test_a_panel_shows_its_items_from_left_to_right_with_their_classes(items: dict[str, Items]) -> None:
    few = Items(pixels=items["test"].pixels[:7], classes=items["test"].classes[:7])
    drawn = draw_panels(few, TWO_TASKS, 50, torch.Generator().manual_seed(3))
    known = {each.numpy().tobytes(): int(label) for each, label in zip(few.pixels, few.classes, strict=True)}
    for row, panel in enumerate(drawn.inputs[:, 0]):
        classes = {known[part.contiguous().numpy().tobytes()] for part in panel.split(28, dim=1)}
        bits = torch.cat([drawn.labels["A"][row], drawn.labels["B"][row]])
        assert {index for index, bit in enumerate(bits) if bit} == classes


@needs_data
def test_a_seed_gives_the_same_panels_for_all_tasks_and_another_seed_others(items: dict[str, Items], panels: PanelData) -> None:
    again = seeded_panels(items, THREE_TASKS, seed=0)
    other = seeded_panels(items, seed=1)
    for split in NUM_PANELS:
        here, there = getattr(panels, split), getattr(again, split)
        assert torch.equal(here.inputs, there.inputs)
        assert torch.equal(torch.cat(list(here.labels.values()), 1), torch.cat(list(there.labels.values()), 1))
        assert not torch.equal(here.inputs, getattr(other, split).inputs)


@needs_data
def test_full_size_panels_show_the_same_items_larger(items: dict[str, Items]) -> None:
    test = load_items(DATA, full_size=True)["test"]
    large, small = (draw_panels(each, TWO_TASKS, 20, torch.Generator().manual_seed(0)) for each in (test, items["test"]))
    assert large.inputs.shape == (20, 1, 124, 496)
    assert torch.equal(large.labels["A"], small.labels["A"])
    # Enlarging keeps a picture's mean but for its border rows, which weigh a little differently.
    assert (large.inputs.mean((1, 2, 3)) - small.inputs.mean((1, 2, 3))).abs().max() < 0.05


@needs_data
def test_pixels_are_centred(items: dict[str, Items]) -> None:
    # The constants are those of the whole training file, rounded to three digits.
    assert items["train"].pixels.mean().abs() < 0.01
    assert abs(items["train"].pixels.std() - 1) < 0.01


def test_a_missing_data_set_is_refused_and_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="fashion-mnist"):
        load_items(tmp_path)


def _information(first: Predicate, second: Predicate) -> float:
    """I in bits between "a class of the set occurs" of two sets, over all draws of four classes."""
    classes = torch.tensor(list(product(range(10), repeat=4)))
    tasks: dict[str, Sequence[Predicate]] = {"A": (first,), "B": (second,)}
    labels = labels_of(classes, tasks)
    joint = torch.stack([labels["A"][:, 0], labels["B"][:, 0]])
    shares = torch.histogramdd(joint.T.double().contiguous(), bins=[2, 2], range=[0, 1, 0, 1]).hist / len(classes)
    return float((torch.xlogy(shares, shares / (shares.sum(1, keepdim=True) * shares.sum(0)))).sum() / math.log(2))


@pytest.mark.parametrize(("bits", "tasks"), RELATEDNESS.items())
def test_the_related_tasks_share_the_information_they_say(bits: float, tasks: Tasks) -> None:
    assert _information(tasks["A"][0], tasks["B"][0]) == pytest.approx(bits, abs=5e-4)  # the keys have three digits


def test_the_label_sets_cover_each_class_once() -> None:
    for tasks in (TWO_TASKS, THREE_TASKS):
        assert sorted(each for predicates in tasks.values() for (each,) in predicates) == list(range(10))
    assert set(INCLUSION["B"]) < set(INCLUSION["A"])


@pytest.mark.parametrize(("height", "width", "million"), [(28, 112, 5.47764), (124, 496, 107.03796)])
def test_lenet_costs_what_the_design_computes(height: int, width: int, million: float) -> None:
    network = LeNet5(5, height=height, width=width)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, height, width))
    maps = height * width
    expected = 2 * (maps * 6 * 25 + maps // 4 * 16 * 6 * 25 + maps // 16 * 16 * 120 + 120 * 84 + 84 * 5)
    assert counter.get_total_flops() == expected
    assert expected / 1e6 == pytest.approx(million, abs=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_maps_panels_to_a_logit_per_bit_and_learns_in_all_its_weights(name: str) -> None:
    network = NETWORKS[name](3)
    logits = network(torch.randn(4, 1, 28, 112, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


@pytest.fixture(scope="module")
def small() -> PanelData:
    """Panels of items whose class is the row that is bright: learnt in a few steps, by no data set."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 10
    pixels = 0.1 * torch.randn(200, 28, 28, generator=generator)
    pixels[torch.arange(200), 2 * classes + 4] += 2
    items = Items(pixels=pixels, classes=classes)
    train, validation, test = (draw_panels(items, TWO_TASKS, count, generator) for count in (192, 64, 64))
    return PanelData(tasks=TWO_TASKS, train=train, validation=validation, test=test, train_items=items)


SHORT = Recipe(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def trained(small: PanelData) -> Single:
    return train_single(small, "A", SHORT, seed=0)


def test_a_single_network_is_the_one_of_its_best_epoch(small: PanelData) -> None:
    reached: dict[int, float] = {}
    single = train_single(small, "A", SHORT, seed=0, report=reached.__setitem__)
    assert sorted(reached) == [1, 2, 3]
    assert single.validation_accuracy == max(reached.values()) == reached[single.best_epoch]
    # The network was measured in another memory format, whose rounding may turn one of the 320 bits.
    again = accuracy(single.network, small.validation.inputs, small.validation.labels["A"])
    assert again == pytest.approx(single.validation_accuracy, abs=1.5 / 320)
    assert accuracy(single.network, small.test.inputs, small.test.labels["A"]) == single.test_accuracy


@pytest.mark.parametrize("is_redrawn", [True, False])
def test_a_training_is_decided_by_its_seed_and_leaves_the_callers_random_state(small: PanelData, *, is_redrawn: bool) -> None:
    recipe = Recipe(epochs=1, batch_size=64, is_redrawn=is_redrawn)
    before = torch.get_rng_state()
    first, second = (train_single(small, "B", recipe, seed=5).network.state_dict() for _ in range(2))
    other = train_single(small, "B", recipe, seed=6).network.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["out.bias"], other["out.bias"])


def test_a_training_is_read_back_where_its_settings_are_equal_and_done_anew_where_not(
    small: PanelData, trained: Single, tmp_path: Path
) -> None:
    first = cached_single(small, "A", SHORT, seed=0, folder=tmp_path)
    second = cached_single(small, "A", SHORT, seed=0, folder=tmp_path)
    assert second.seconds == first.seconds  # a second training would have taken another time
    assert len(list(tmp_path.iterdir())) == 1
    inputs = small.test.inputs
    assert torch.equal(first.network(inputs), second.network(inputs))
    assert torch.equal(first.network(inputs), trained.network(inputs))
    cached_single(small, "B", SHORT, seed=0, folder=tmp_path)
    cached_single(small, "A", Recipe(epochs=1, batch_size=64), seed=0, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
