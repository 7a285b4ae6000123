"""Which variants are made, out of what, and what becomes of those that cannot be made."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from serving.building import build_family, describe_family
from serving.drafts import Draft
from serving.errors import ServingError
from serving.generation import PARENT, generate
from serving.networks.reading import read_network
from serving.plans import RATIOS, Plan
from serving.progress import Event, LeftOut, NetworkDone, Stage, StageBegan, Stored
from serving.records import Source
from serving.sources import from_fused, given
from serving.store import VariantStore
from serving.subsets import MAX_SUBSETS, subset_name, subsets_of
from serving.training import Trained, TrainJob, train_plainly
from tests.unit.serving_models import TwoHeads, images, labelled, two_tasks

FACES = ("age", "gender", "ethnicity")
QUICK = {"ratios": (0.0, 0.5), "train_epochs": 1, "finetune_epochs": 1, "batch_size": 16}
BOTH = Plan(systems="both", **QUICK)


@dataclass
class Untrained:
    """One who trains nothing, remembers what it was asked for, and fails where it is told to."""

    failing: tuple[str, ...] = ()
    batches: list[list[TrainJob]] = field(default_factory=list)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __call__(self, jobs: Sequence[TrainJob]) -> Iterator[Trained]:
        self.batches.append(list(jobs))
        for job in reversed(jobs):
            self.weights[job.name] = copy.deepcopy(job.network.state_dict())
            yield Trained(name=job.name, problem="its loss is nan" if job.name in self.failing else None)


def parent(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TwoHeads(width=8).eval()


def drafts(plan: Plan, train: Untrained | None = None, events: list[Event] | None = None) -> dict[str, Draft]:
    network = read_network(parent(), (images(2),), label="test")
    told = [] if events is None else events
    made = generate(network, two_tasks().tasks, labelled(), plan, train=train or Untrained(), tell=told.append)
    return {draft.name: draft for draft in made}


def test_the_papers_two_sets_are_40_and_30_variants():
    assert len(Plan().names(FACES)) == 40
    assert len(Plan(systems="single").names(FACES)) == 30
    both = Plan(systems="both").names(FACES)
    assert len(set(both)) == 70
    assert RATIOS == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert {"all-p00", "all-p90", "age-p30", "single-ethnicity-p70"} <= set(both)


def test_subsets_are_in_the_order_of_the_tasks():
    assert subsets_of(FACES, "singles+all") == (FACES, ("age",), ("gender",), ("ethnicity",))
    assert len(subsets_of(FACES, "all")) == 7
    assert subsets_of(FACES, (("ethnicity", "age"), ("gender",), ("age", "ethnicity"))) == (("age", "ethnicity"), ("gender",))
    assert subsets_of(("age",), "singles+all") == (("age",),)
    eight = [f"t{number}" for number in range(8)]
    assert len(subsets_of(eight, "all")) == MAX_SUBSETS
    assert len({subset_name(subset, eight) for subset in subsets_of(eight, "all")}) == MAX_SUBSETS


def test_names_of_subsets_are_short_and_each_its_own():
    clash = ("a", "b", "a_b", "all")
    assert len({subset_name(subset, clash) for subset in subsets_of(clash, "all")}) == 15
    long = ("x" * 90, "y" * 90)
    assert all(len(subset_name((task,), long)) <= 80 for task in long)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ((("age", "height"),), "unknown: height"),
        (((),), "an empty one"),
        ((), "at least one subset"),
        ("some", "'singles\\+all', 'all' or tuples"),
    ],
)
def test_subsets_that_there_are_not_are_refused(which, message):
    with pytest.raises(ServingError, match=message):
        subsets_of(FACES, which)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratios": (0.5, 1.0)}, r"from 0 up to 1, got \[1.0\]"),
        ({"ratios": ()}, "got none"),
        ({"criterion": "size"}, "one of magnitude, taylor, batchnorm; got 'size'"),
        ({"ratio_of": "layers"}, "channels, parameters, flops"),
        ({"systems": "both", "train_epochs": 0}, "never trained for several tasks"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused_at_once(fields, message):
    with pytest.raises(ServingError, match=message):
        Plan(**fields)


def test_all_trainings_of_a_stage_are_one_batch_and_single_networks_begin_where_the_parent_does():
    train, events = Untrained(), []
    found = drafts(BOTH, train, events)
    first, second = ([job.name for job in batch] for batch in train.batches)
    assert first == [PARENT, "single-shoe", "single-size"]
    assert second == [f"{prefix}-{ratio}" for ratio in ("p00", "p50") for prefix in ("all", "shoe", "size", *first[1:])]
    assert set(found) == set(second) == set(BOTH.names(("shoe", "size")))
    untrained = parent().state_dict()
    for name, value in train.weights["single-shoe"].items():
        assert torch.equal(value, untrained[name])
    assert "heads.size.weight" not in train.weights["single-shoe"]
    assert {task.name for job in train.batches[1] if job.name == "all-p50" for task in job.tasks} == {"shoe", "size"}
    assert [task.name for job in train.batches[1] if job.name == "size-p50" for task in job.tasks] == ["size"]
    assert len({id(job.data) for batch in train.batches for job in batch}) == 1
    assert [event.stage for event in events if isinstance(event, StageBegan)] == list(Stage)
    assert sum(isinstance(event, NetworkDone) and event.stage is Stage.FINE_TUNE for event in events) == len(second)


def test_drafts_say_how_they_came_about():
    network = parent()
    found = drafts(BOTH)
    assert {name: draft.source for name, draft in found.items() if draft.ratio == 0.5} == {
        "all-p50": Source.PRUNED,
        "shoe-p50": Source.HEAD_REMOVED,
        "size-p50": Source.HEAD_REMOVED,
        "single-shoe-p50": Source.SINGLE,
        "single-size-p50": Source.SINGLE,
    }
    assert {draft.parent for draft in found.values()} == {PARENT, "single-shoe", "single-size"}
    assert all(set(draft.achieved.values()) == {0.0} for draft in found.values() if draft.ratio == 0)
    half = found["shoe-p50"]
    assert half.achieved["channels"] == pytest.approx(4 / 11)  # 4 of 8, and none of the head's 3
    assert half.achieved["parameters"] > 0.4
    assert not half.module.training
    assert half.provenance["made_from"]["name"] == PARENT
    assert half.provenance["loss_weights"] == {"shoe": 1.0}
    assert half.provenance["data"] == {"samples": 40, "digest": labelled().digest()}
    for name, value in read_network(network, (images(2),), label="test").state_dict().items():
        assert torch.equal(value, parent().state_dict()[name])


@pytest.mark.parametrize("prune_for", ["parent", "tasks"])
def test_a_variant_without_heads_answers_as_the_whole_one_until_it_is_fine_tuned(prune_for):
    plan = Plan(ratios=(0.0, 0.5), train_epochs=0, finetune_epochs=0, prune_for=prune_for)
    found, image = drafts(plan), images(5)
    with torch.no_grad():
        whole = parent()(image)
        assert torch.equal(found["shoe-p00"].module(image)["shoe"], whole["shoe"])
        pruned, alone = found["all-p50"].module(image), found["size-p50"].module(image)
    assert set(alone) == {"size"}
    if prune_for == "parent":
        assert torch.equal(alone["size"], pruned["size"])


@pytest.mark.parametrize("criterion", ["taylor", "batchnorm"])
def test_other_criteria_are_asked_for(criterion):
    found = drafts(Plan(criterion=criterion, **QUICK))
    assert found["all-p50"].provenance["pruning"]["criterion"] == criterion
    assert found["all-p50"].achieved["parameters"] > 0.3


def test_what_fails_is_left_out_and_the_rest_is_made():
    events: list[Event] = []
    found = drafts(BOTH, Untrained(failing=("single-size", "size-p50")), events)
    assert set(found) == {name for name in BOTH.names(("shoe", "size")) if name != "size-p50" and "single-size" not in name}
    assert [event for event in events if isinstance(event, LeftOut)] == [
        LeftOut(name="single-size", reason="its loss is nan"),
        LeftOut(name="size-p50", reason="its loss is nan"),
    ]


def test_if_nothing_can_be_made_the_reason_is_told():
    with pytest.raises(ServingError, match="parent: its loss is nan"):
        drafts(Plan(**QUICK), Untrained(failing=(PARENT,)))


def test_a_fused_network_is_taken_as_it_is_for_each_subset():
    network, image = read_network(parent(), (images(2),), label="test"), images(3)
    found = list(from_fused(network, ("shoe", "size"), "all"))
    assert [(draft.name, draft.source, draft.parent) for draft in found] == [
        ("fused-all", Source.FUSED, None),
        ("fused-shoe", Source.FUSED, "fused-all"),
        ("fused-size", Source.FUSED, "fused-all"),
    ]
    with torch.no_grad():
        assert torch.equal(found[2].module(image)["size"], parent()(image)["size"])


def test_modules_are_taken_as_they_are():
    (draft,) = given({"mine": TwoHeads(("size",))}, (images(2),))
    assert (draft.name, draft.tasks, draft.source) == ("mine", ("size",), Source.GIVEN)


def build(path: Path, name: str = "panels", train: Iterable = (), **fields: object) -> tuple[VariantStore, list[Event]]:
    events: list[Event] = []
    plan = Plan(**(QUICK | fields))
    held_out = labelled(10, seed=1)
    build_family(path, parent(), labelled(), name=name, plan=plan, validation=held_out, train=train_plainly, tell=events.append)
    return VariantStore.open(path), events


def test_a_family_is_built_into_a_store_and_added_to(tmp_path):
    store, events = build(tmp_path / "variants")
    assert sorted(variant.name for variant in store.variants()) == sorted(Plan(**QUICK).names(("shoe", "size")))
    assert [event.variant for event in events if isinstance(event, Stored)] == list(store.variants())
    (family,) = store.families().values()
    assert [(spec.name, spec.dtype, spec.shape) for spec in family.inputs] == [("image", "FP32", (1, 6, 6))]
    assert [(task.name, task.shape) for task in family.tasks] == [("shoe", (3,)), ("size", (1,))]
    kept = store.validation("panels")
    assert kept is not None
    assert kept.digest() == labelled(10, seed=1).digest()
    half = next(variant for variant in store.variants() if variant.name == "shoe-p50")
    assert set(store.load(half.id)(images(3))) == {"shoe"}
    assert half.provenance["fine_tuning"]["epochs"] == 1

    with pytest.raises(ServingError, match="has variants of family 'panels' named all-p00, all-p50"):
        build(tmp_path / "variants")
    again, _ = build(tmp_path / "variants", ratios=(0.25,), subsets=(("size",),))
    assert len(again.variants()) == 7


def test_another_network_is_not_added_to_a_family(tmp_path):
    build(tmp_path / "variants", ratios=(0.0,), train_epochs=0, finetune_epochs=0)
    data = labelled()
    with pytest.raises(ServingError, match="other inputs or tasks"):
        build_family(tmp_path / "variants", TwoHeads(("size",)), data, name="panels", plan=Plan(**QUICK))


def test_variants_that_are_the_same_network_are_kept_once(tmp_path):
    """Half of one percent of eight channels is none of them: without training nothing tells them apart."""
    store, events = build(tmp_path / "variants", ratios=(0.0, 0.005), train_epochs=0, finetune_epochs=0)
    assert {variant.ratio for variant in store.variants()} == {0.0}
    assert {event.name for event in events if isinstance(event, LeftOut)} == {"all-p0.5", "shoe-p0.5", "size-p0.5"}


def test_weights_of_losses_are_of_tasks_that_there_are():
    network = read_network(parent(), (images(2),), label="test")
    family = describe_family("panels", network, labelled(), weights={"shoe": 2.0})
    assert family.task("shoe").weight == 2.0
    with pytest.raises(ServingError, match="weights of hat, which the network does not answer; it has shoe, size"):
        describe_family("panels", network, labelled(), weights={"hat": 1.0})
