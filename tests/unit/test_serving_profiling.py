"""Profiles: scores as a closed form gives them, latencies for every batch size, and only what changed is measured again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serving.data import TaskData
from serving.errors import ServingError
from serving.hardware import Hardware
from serving.measuring import drop_cached, using_threads
from serving.profiles import Latency, Profile, Profiled, Reference, make_table
from serving.profiling import ProfileOptions, ProfileProgress, ProfileReport, Stage, profile
from serving.records import Source, Variant
from serving.store import VariantStore
from tests.unit.serving_models import TASKS, Unstable, draft, filled_store, images, labelled, quiet, two_tasks

# Milliseconds, for what is measured is not what is tested. The reference may drift as it likes.
QUICK = ProfileOptions(batches=(1, 3), max_seconds=0.01, max_drift=1e9, max_spread=1e9)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three variants, which nobody changes."""
    path = tmp_path_factory.mktemp("made")
    store, _ = filled_store(path, draft("both"), draft("shoe", ("shoe",), seed=1), draft("size", ("size",), seed=2))
    store.keep_validation("panels", labelled())
    store.close()
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> VariantStore:
    """A copy of it: a store is taken to another place as any folder is."""
    return VariantStore.open(shutil.copytree(made, tmp_path / "store"))


def measure(store: VariantStore, data: TaskData | None = None, threads: int = 1, **changes: object) -> ProfileReport:
    return profile(store, "panels", data, threads=threads, options=replace(QUICK, **changes))


def test_scores_are_those_of_the_modules_on_all_held_out_samples(store: VariantStore) -> None:
    data = labelled(600, seed=3)  # more than are evaluated at once
    table = measure(store, data).table
    modules = {"both": draft("both"), "shoe": draft("shoe", ("shoe",), seed=1), "size": draft("size", ("size",), seed=2)}
    for place, variant in enumerate(table.variants):
        with torch.no_grad():
            outputs = modules[variant.name].module.eval()(data.inputs[0])
        wanted = dict.fromkeys(TASKS, np.nan)
        if "shoe" in outputs:
            wanted["shoe"] = (outputs["shoe"].argmax(1) == data.labels["shoe"]).double().mean().item()
        if "size" in outputs:
            error = (outputs["size"].squeeze(1) - data.labels["size"]).square().double().mean().item()
            wanted["size"] = max(0.0, 1 - error / 2)
        # batches of another size may round otherwise
        np.testing.assert_allclose(table.scores[place], list(wanted.values()), rtol=1e-6)


def test_every_batch_size_has_quantiles_and_the_fastest_comes_first(store: VariantStore) -> None:
    report = measure(store)
    table = report.table
    assert table.hardware == report.hardware.fingerprint == Hardware.here().fingerprint
    assert table.batches == (1, 3)
    assert list(table.infer_ms["p50"][:, 0]) == sorted(table.infer_ms["p50"][:, 0])
    assert (table.infer_ms["p95"] >= table.infer_ms["p50"]).all()
    assert (table.infer_ms["p50"] > 0).all()
    assert (table.load_warm_ms > 0).all()
    assert table.suspect == frozenset()
    found = store.metadata.profiles("panels", table.hardware)
    assert all(0 < entry.copy_ms < entry.p50_ms for profile in found.values() for entry in profile.infer)
    with pytest.raises(ValueError, match="read-only"):
        table.scores[0] = 1


def test_only_what_changed_is_measured_again(store: VariantStore) -> None:
    first = measure(store)
    ids = tuple(variant.id for variant in store.variants())
    assert (first.scored, first.timed) == (ids, ids)

    second = measure(store)
    assert (second.scored, second.timed) == ((), ())
    assert second.table.variants == first.table.variants

    new = store.add(draft("new", seed=4), (images(3),)).id
    third = measure(store)
    assert (third.scored, third.timed) == ((new,), (new,))

    other_data = measure(store, labelled(seed=9))
    assert (other_data.scored, other_data.timed) == ((*ids, new), ())

    other_batches = measure(store, labelled(seed=9), batches=(2,))
    assert (other_batches.scored, other_batches.timed) == ((), (*ids, new))
    assert other_batches.table.batches == (1, 2)

    forced = measure(store, labelled(seed=9), batches=(2,), force=True)
    assert (forced.scored, forced.timed) == ((*ids, new), (*ids, new))


def test_reopening_gives_the_same_table(store: VariantStore) -> None:
    table = measure(store).table
    again = VariantStore.open(store.path).table("panels")
    assert again.hardware == table.hardware
    assert again.variants == table.variants
    for name in ("scores", "load_cold_ms", "load_warm_ms", "num_bytes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    for quantile, values in table.infer_ms.items():
        np.testing.assert_array_equal(again.infer_ms[quantile], values)


def test_profiles_of_another_machine_are_never_used(store: VariantStore) -> None:
    report = measure(store)
    [known] = store.hardware("panels").values()
    assert known == report.hardware
    for change in ({"cpu": "another"}, {"torch": "1.0"}, {"num_cores": 99}, {"dtype": "float16"}):
        assert replace(known, **change).fingerprint != known.fingerprint
        assert not replace(known, **change).is_here
    elsewhere = replace(known, cpu="another")
    with store.metadata.writing():
        for key, found in store.metadata.profiles("panels", known.fingerprint).items():
            store.metadata.put_profile(key, elsewhere, replace(found, measured=found.measured + 100))
        store.metadata._write("DELETE FROM profile WHERE hardware = ?", known.fingerprint)
    assert len(store.table("panels")) == 0
    assert len(store.table("panels", elsewhere.fingerprint)) == 3
    assert measure(store).timed == tuple(variant.id for variant in store.variants())


def test_the_table_by_default_is_that_of_the_latest_threads_used_here(store: VariantStore) -> None:
    one, two = measure(store), Hardware.here(threads=2)
    assert one.hardware.fingerprint != two.fingerprint
    with store.metadata.writing():
        for key, found in store.metadata.profiles("panels", one.hardware.fingerprint).items():
            store.metadata.put_profile(key, two, replace(found, measured=found.measured + 100))
    assert store.table("panels").hardware == two.fingerprint
    assert store.hardware("panels")[store.table("panels").hardware].threads == 2
    assert store.table("panels", one.hardware.fingerprint).variants == one.table.variants


def test_a_variant_whose_output_is_not_finite_is_rejected_and_others_serve(store: VariantStore) -> None:
    bad = store.add(replace(draft("bad", ("size",)), module=Unstable()), (images(3),))
    data = labelled()
    data.inputs[0][7] = 0
    for _ in range(2):  # what is rejected stays so
        report = measure(store, data)
        assert report.rejected == {bad.id: "task 'size': an output is not finite"}
        assert bad.id not in report.timed
        assert bad.id not in report.table.index
        assert len(report.table) == 3
    assert measure(store, labelled(seed=1)).rejected == {}


class Picky(nn.Module):
    """Fails where an image is too bright for its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"size": self.table((image.amax((1, 2, 3)) > 50).long() * 9)}


def test_a_variant_that_fails_on_held_out_samples_is_said_and_others_are_measured(store: VariantStore) -> None:
    bad = store.add(replace(draft("bad", ("size",)), module=Picky()), (images(3),))
    data = labelled()
    data.inputs[0][7] = 100
    report = measure(store, data)
    assert list(report.rejected) == [bad.id]
    assert "fails on held-out samples: IndexError" in report.rejected[bad.id]
    assert len(report.scored) == len(report.timed) == 3


def test_a_variant_whose_files_are_damaged_is_said_and_others_are_measured(store: VariantStore) -> None:
    bad, *good = store.variants()
    path = store.folder(bad.id) / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    report = measure(store)
    assert list(report.rejected) == [bad.id]
    assert "'both' are not those that were added" in report.rejected[bad.id]
    assert report.scored == report.timed == tuple(variant.id for variant in good)


def test_data_that_do_not_fit_are_refused_all_at_once(store: VariantStore) -> None:
    good = labelled()
    wrong = TaskData(inputs=(good.inputs[0].double(),), labels={"shoe": good.labels["shoe"].float()})
    with pytest.raises(ServingError) as caught:
        measure(store, wrong)
    text = str(caught.value)
    assert "input 'image': expected float32 (n, 1, 6, 6), n from 1; got float64 (40, 1, 6, 6)" in text
    assert "task 'shoe': expected class numbers int64 (N,), got float32 (40,)" in text
    assert "task 'size': expected labels of it, got those of shoe" in text


def test_without_data_or_device_or_sense_nothing_is_measured(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path, draft("both"))
    with pytest.raises(ServingError, match="keeps no held-out data"):
        measure(store)
    with pytest.raises(ServingError, match="has no family 'pans'"):
        profile(store, "pans", labelled())
    with pytest.raises(ServingError, match="there is no device 'cuda:77' here"):
        profile(store, "panels", labelled(), device="cuda:77")
    with pytest.raises(ServingError, match="expected a device such as cpu or cuda:0, got 'gpu'"):
        profile(store, "panels", labelled(), device="gpu")
    with pytest.raises(ServingError, match="batch sizes from 1"):
        ProfileOptions(batches=(0, 1))
    with pytest.raises(ServingError, match="max_seconds, max_drift and max_spread > 0"):
        ProfileOptions(max_seconds=0)
    assert len(store.table("panels")) == 0


def test_disturbed_profiles_are_marked_and_measured_again(store: VariantStore) -> None:
    ids = {variant.id for variant in store.variants()}
    for limit in ("max_drift", "max_spread"):
        report = measure(store, **{limit: 1e-12})  # measurements are never that equal
        assert set(report.suspect) == ids
        assert report.table.suspect == frozenset(range(3))
    again = measure(store)
    assert (set(again.timed), again.suspect, again.table.suspect) == (ids, (), frozenset())


def test_what_was_done_is_kept_when_it_is_interrupted_and_the_old_table_stays(store: VariantStore) -> None:
    table = measure(store).table

    def stop(progress: ProfileProgress) -> None:
        if progress.stage is Stage.SCORES and progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(store, "panels", labelled(seed=5), options=QUICK, progress=stop)
    np.testing.assert_array_equal(store.table("panels").scores, table.scores)
    seen: list[ProfileProgress] = []
    report = profile(store, "panels", labelled(seed=5), options=replace(QUICK, force=False), progress=seen.append)
    assert len(report.scored) == 1
    assert seen[-1] == ProfileProgress(stage=Stage.SCORES, done=1, total=1)


def test_threads_and_random_states_are_as_before(store: VariantStore) -> None:
    state = torch.random.get_rng_state()
    with using_threads(2):
        measure(store, threads=1)
        assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_variant_removed_while_it_is_measured_leaves_nothing(store: VariantStore) -> None:
    doomed = store.variants()[0]

    def remove(progress: ProfileProgress) -> None:
        if progress.stage is Stage.INFERENCE and doomed in store.variants():
            store.remove(doomed.id)

    report = profile(store, "panels", options=QUICK, progress=remove)
    assert doomed.id not in report.table.index
    assert len(report.table) == 2
    assert store.metadata._rows("SELECT COUNT(*) FROM profile") == [(2,)]


def test_files_are_whole_after_they_were_dropped_from_memory(store: VariantStore) -> None:
    variant = store.variants()[0]
    assert isinstance(drop_cached(store.folder(variant.id)), bool)  # not every file system can
    store.load(variant.id)


numbers = st.floats(0.001, 1e6)


@st.composite
def profiled(draw: st.DrawFn) -> list[Profiled]:
    found = []
    for place in range(draw(st.integers(0, 6))):
        tasks = draw(st.sampled_from([("shoe",), ("size",), TASKS]))
        batches = sorted({1, *draw(st.sets(st.sampled_from([2, 4, 8]), max_size=3))})
        variant = Variant(
            id=f"{place:016x}", name=f"v{place}", family="panels", tasks=tasks, source=Source.GIVEN, parent=None, ratio=0.0,
            achieved={}, num_parameters=1, flops=1, num_bytes=4, weights_sha256="",
        )  # fmt: skip
        infer = tuple(
            Latency(rows=rows, p50_ms=draw(numbers), p95_ms=draw(numbers), copy_ms=draw(numbers), num_runs=3)
            for rows in batches
        )
        measured = Profile(
            infer=infer, load_cold_ms=draw(numbers), load_warm_ms=draw(numbers), is_cold=draw(st.booleans()),
            reference=Reference(before_ms=1.0, p50_ms=draw(numbers), p95_ms=draw(numbers), after_ms=2.0),
            is_suspect=draw(st.booleans()), measured=draw(numbers),
        )  # fmt: skip
        found.append(Profiled(variant=variant, scores={task: draw(st.floats(0, 1)) for task in tasks}, profile=measured))
    return found


@settings(deadline=None, max_examples=60)
@given(profiled())
def test_a_table_holds_each_profile_in_its_line(found: list[Profiled]) -> None:
    table = make_table(two_tasks(), "here", found)
    by_id = {entry.variant.id: entry for entry in found}
    assert set(table.index) == set(by_id)
    assert 1 in table.batches
    order = [(table.infer_ms["p50"][place, 0], variant.id) for place, variant in enumerate(table.variants)]
    assert order == sorted(order)
    for place, variant in enumerate(table.variants):
        entry = by_id[variant.id]
        assert Profile.from_json(json.loads(json.dumps(entry.profile.to_json()))) == entry.profile
        assert [table.infer_ms["p95"][place, b] for b in range(len(table.batches))] == [
            entry.profile.at(rows).p95_ms for rows in table.batches
        ]
        assert {
            task: score for task, score in zip(TASKS, table.scores[place], strict=True) if not np.isnan(score)
        } == entry.scores
        assert table.masks[place] == table.mask_of(variant.tasks)
        assert (place in table.suspect) == entry.profile.is_suspect
