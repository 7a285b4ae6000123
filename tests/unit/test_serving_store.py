"""The store of variants: what is added comes back bit for bit, and what cannot be used is refused in words."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from serving.errors import DuplicateVariantError, ServingError
from serving.hardware import Hardware
from serving.profiles import Latency, Profile, Reference
from serving.records import Family, Kind, TaskSpec
from serving.store import VariantStore
from serving.variant_files import new_folder
from tests.unit.serving_models import TASKS, TwoHeads, draft, filled_store, images, labelled, quiet, two_tasks


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


class Odd(nn.Module):
    """Answers as it is told to."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> object:
        return self.answer(image * self.scale)


def test_what_is_added_comes_back_bit_for_bit_after_reopening(tmp_path: Path) -> None:
    both, one = draft("both"), draft("one", ("size",), seed=1, parent="both")
    store, added = filled_store(tmp_path / "store", both, one)
    store.keep_validation("panels", labelled())
    store.close()

    again = VariantStore.open(tmp_path / "store")
    assert again.variants() == again.variants("panels") == added
    assert again.families() == {"panels": two_tasks()}
    assert added[1].parent == added[0].id
    for original, variant in ((both, added[0]), (one, added[1])):
        network, module = again.load(variant.id), original.module.eval()
        for rows in (1, 3, 7):
            given, wanted = network(images(rows, 5)), module(images(rows, 5))
            assert list(given) == list(variant.tasks)
            assert all(torch.equal(given[task], wanted[task]) for task in variant.tasks)
    kept = again.validation("panels")
    assert kept is not None
    assert kept.digest() == labelled().digest()
    assert torch.equal(again.examples("panels")[0], images(3))


def test_a_variant_is_counted_and_its_files_say_the_same(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    # convolution 4 x 9 + 4, norm 4 + 4, heads (4 + 1) x 4; FLOPs: 2 x 4 x 9 x 16 places, and 2 x 4 x 4 of the heads
    assert variant.num_parameters == 40 + 8 + 20
    assert variant.flops == 2 * 4 * 9 * 16 + 2 * 4 * 4
    # the statistics of the norm are buffers; its counter may be there too
    assert variant.num_bytes in (4 * (68 + 8), 4 * (68 + 8) + 8)
    assert json.loads((store.folder(variant.id) / "variant.json").read_text()) == json.loads(json.dumps(variant.to_json()))
    assert store.folder(variant.id) == tmp_path / "panels" / variant.id


def test_adding_leaves_the_module_in_training_and_tasks_in_the_familys_order(tmp_path: Path) -> None:
    turned = draft("turned", ("size", "shoe"))
    _, [variant] = filled_store(tmp_path, turned)
    assert variant.tasks == TASKS
    assert turned.module.training
    assert turned.module.encoder[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda image: image.mean((2, 3)), "expected outputs by task"),
        (
            lambda image: {"shoe": image.mean((2, 3)).repeat(1, 3)},
            r"expected outputs by task, \['shoe', 'size'\]; got \['shoe'\]",
        ),
        (
            lambda image: {"shoe": image.mean((2, 3)), "size": image.mean((2, 3))},
            r"task 'shoe': expected an output \(3, 3\), got \(3, 1\)",
        ),
        (
            lambda image: {"shoe": image.mean((2, 3)).repeat(1, 3), "size": image.mean((2, 3)) / 0},
            "task 'size': an output is not finite",
        ),
    ],
)
def test_networks_that_do_not_answer_the_tasks_are_refused(tmp_path: Path, answer: Callable, problem: str) -> None:
    store, _ = filled_store(tmp_path)
    before = store.version
    with pytest.raises(ServingError, match=problem):
        store.add(replace(draft("odd"), module=Odd(answer)), (images(3),))
    assert store.version == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("store.sqlite")] == []


def test_drafts_that_do_not_fit_the_family_are_refused(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path)
    with pytest.raises(ServingError, match="expected tasks of family 'panels', shoe, size; got colour"):
        store.add(replace(draft("odd"), tasks=("shoe", "colour")), (images(3),))
    with pytest.raises(ServingError, match="a variant's name"):
        store.add(draft("a/b"), (images(3),))
    with pytest.raises(ServingError, match="from 0 to less than 1, got 1"):
        store.add(replace(draft("odd"), ratio=1.0), (images(3),))
    for wrong in ((images(3).double(),), (images(3)[:, :, :5],), (images(0),), ()):
        with pytest.raises(ServingError, match=r"'odd': (input 'image': )?expected"):
            store.add(draft("odd"), wrong)
    assert store.variants() == ()
    with pytest.raises(ServingError, match="has no variant yet"):
        store.examples("panels")


def test_a_name_or_a_network_that_is_there_is_refused(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    with pytest.raises(DuplicateVariantError, match="has a variant 'both'") as caught:
        store.add(draft("both", seed=1), (images(3),))
    assert caught.value.variant == variant.id
    with pytest.raises(DuplicateVariantError, match="'copy' is the same as 'both' of family 'panels'"):
        store.add(draft("copy"), (images(3),))
    assert store.variants() == (variant,)
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "altered"])
def test_files_that_are_missing_or_altered_are_refused_and_others_load(tmp_path: Path, name: str, damage: str) -> None:
    store, [bad, good] = filled_store(tmp_path, draft("bad"), draft("good", seed=1))
    path = store.folder(bad.id) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] + (b"" if damage == "shorter" else bytes([content[-1] ^ 1])))
    with pytest.raises(ServingError, match="build" if damage == "gone" else "'bad' are not those that were added"):
        store.load(bad.id)
    store.load(good.id)


def test_files_of_another_variant_are_refused(tmp_path: Path) -> None:
    store, [one, other] = filled_store(tmp_path, draft("one"), draft("other", seed=1))
    for name in ("graph.json", "model.safetensors"):
        (store.folder(one.id) / name).write_bytes((store.folder(other.id) / name).read_bytes())
    with pytest.raises(ServingError, match="'one' are not those that were added"):
        store.load(one.id)


def test_folders_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is no store of variants"):
        VariantStore.open(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ServingError, match="not empty and no store"):
        VariantStore.create(tmp_path, two_tasks())
    with pytest.raises(ServingError, match="cannot be made or read"):
        VariantStore.create(tmp_path / "mine.txt", two_tasks())
    (tmp_path / "store.sqlite").write_bytes(b"no database, but long enough for its header" * 9)
    with pytest.raises(ServingError, match="is no SQLite database"):
        VariantStore.open(tmp_path)
    (tmp_path / "store.sqlite").unlink()
    with sqlite3.connect(tmp_path / "store.sqlite") as foreign:
        foreign.execute("CREATE TABLE recipe (name TEXT)")
    foreign.close()
    for refuse in (VariantStore.open, lambda path: VariantStore.create(path, two_tasks())):
        with pytest.raises(ServingError, match="is no store of variants"):
            refuse(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "store.sqlite"]


def test_a_newer_schema_and_a_damaged_row_are_refused(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    with store.metadata.writing():
        store.metadata._write("UPDATE variant SET content = '{}'")
    with pytest.raises(ServingError, match=f"variant {variant.id} is damaged"):
        store.variants()
    with store.metadata.writing():
        store.metadata._write("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    store.close()
    with pytest.raises(ServingError, match=r"schema version 99.*use a newer unified"):
        VariantStore.open(tmp_path)


FORGED = {
    "a family that leads out of the folder": "UPDATE family SET name = '{elsewhere}'",
    "a family that goes up": "UPDATE family SET name = '../elsewhere'",
    "a variant filed under another id": "UPDATE variant SET id = '../elsewhere'",
    "a variant of a folder elsewhere": "UPDATE variant SET content = json_set(content, '$.family', '../elsewhere')",
    "a variant of a negative size": "UPDATE variant SET content = json_set(content, '$.num_bytes', -1)",
    "a variant of a size in words": "UPDATE variant SET content = json_set(content, '$.flops', 'many')",
    "a shape below zero": "UPDATE family SET content = json_set(content, '$.inputs[0].shape', json('[-1]'))",
    "a content that is too deep": "UPDATE variant SET content = '{deep}'",
    "no version": "DELETE FROM meta WHERE key = 'version'",
    "a time that is no number": "UPDATE profile SET content = replace(content, '_cold_ms\": 2.0', '_cold_ms\": NaN')",
    "a time below zero": "UPDATE profile SET content = json_set(content, '$.infer[0].p95_ms', -1)",
    "no times": "UPDATE profile SET content = json_set(content, '$.infer', json('[]'))",
    "a score above one": "UPDATE score SET content = json_set(content, '$.shoe', 7)",
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_rows_are_refused_and_lead_nowhere(tmp_path: Path, forged: str) -> None:
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    (elsewhere / "mine").mkdir(parents=True)
    store, [variant] = filled_store(path, draft("both"))
    key = put_profile(store, variant.id)
    statement = FORGED[forged].replace("{elsewhere}", str(elsewhere)).replace("{deep}", "[" * 100_000)
    with sqlite3.connect(path / "store.sqlite") as database:
        database.execute(statement)
    database.close()
    store.close()
    with pytest.raises(ServingError, match=r"damaged|is filed under"):
        VariantStore.open(path).table("panels", key)
    assert (elsewhere / "mine").is_dir()


def test_a_link_in_the_place_of_a_familys_folder_is_not_swept(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    (elsewhere / "mine").mkdir(parents=True)
    filled_store(path)[0].close()
    (path / "panels").symlink_to(elsewhere)
    VariantStore.open(path)
    assert (elsewhere / "mine").is_dir()


def put_profile(store: VariantStore, variant: str) -> str:
    """Put a profile and scores that are written by hand into a store, and return the machine's fingerprint."""
    reference = Reference(before_ms=1.0, p50_ms=1.0, p95_ms=1.0, after_ms=1.0)
    one = Latency(rows=1, p50_ms=1.0, p95_ms=1.0, copy_ms=0.0, num_runs=1)
    measured = Profile(
        infer=(one,), load_cold_ms=2.0, load_warm_ms=1.0, is_cold=False, reference=reference, is_suspect=False, measured=0.0
    )
    here = Hardware.here()
    with store.metadata.writing():
        store.metadata.use_data("panels", "data")
        store.metadata.put_scores(variant, "data", {"shoe": 0.5, "size": 0.5})
        store.metadata.put_profile(variant, here, measured)
    return here.fingerprint


def test_a_family_of_that_name_with_other_tasks_is_refused(tmp_path: Path) -> None:
    filled_store(tmp_path)
    other = replace(two_tasks(), tasks=(TaskSpec(name="shoe", kind=Kind.CLASSIFICATION, shape=(2,)),))
    with pytest.raises(ServingError, match="has a family 'panels' with other inputs or tasks"):
        VariantStore.create(tmp_path, other)


def test_several_families_live_in_one_store(tmp_path: Path) -> None:
    first, [one] = filled_store(tmp_path, draft("both"))
    second = VariantStore.create(tmp_path, two_tasks("boxes"))
    two = second.add(draft("both", seed=1), (images(3),))
    assert first.variants("panels") == (one,)
    assert first.variants("boxes") == (two,)
    assert list(first.families()) == ["panels", "boxes"]
    with pytest.raises(ServingError, match="several families, panels, boxes: say which"):
        VariantStore.open(tmp_path).add(draft("more", seed=2), (images(3),))
    with pytest.raises(ServingError, match="has no family 'pans'; it has panels, boxes"):
        first.table("pans")


def test_what_is_removed_is_gone_and_may_come_back(tmp_path: Path) -> None:
    store, [one, other] = filled_store(tmp_path, draft("one"), draft("other", seed=1))
    store.remove(one.id)
    assert store.variants() == (other,)
    assert [path.name for path in (tmp_path / "panels").glob("*/")] == [other.id]
    for use in (store.remove, store.load, store.folder):
        with pytest.raises(ServingError, match=f"has no variant '{one.id}'"):
            use(one.id)
    assert store.add(draft("one"), (images(3),)).id == one.id


def test_opening_sweeps_what_nobody_writes_any_more(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    rubbish = [tmp_path / ".new-dead", tmp_path / "panels" / "0123456789abcdef"]
    for folder in rubbish:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half of it")
    with new_folder(tmp_path) as busy:
        VariantStore.open(tmp_path)
        assert busy.exists()
    assert not any(folder.exists() for folder in rubbish)
    store.load(variant.id)


def test_every_change_has_a_version_and_reading_has_none(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    seen = [store.version]
    table = store.table("panels")
    VariantStore.open(tmp_path).variants()
    assert store.table("panels") is table
    assert store.version == seen[0]
    other = VariantStore.open(tmp_path)
    other.add(draft("more", seed=1), (images(3),))
    seen.append(store.version)
    other.remove(variant.id)
    seen.append(store.version)
    assert seen == sorted(set(seen))
    assert store.table("panels") is not table


def test_readers_see_whole_variants_while_another_connection_adds_and_removes(tmp_path: Path) -> None:
    reader, _ = filled_store(tmp_path)
    done = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            writer = VariantStore.create(tmp_path, two_tasks())
            for seed in range(4):
                kept = writer.add(draft(f"kept{seed}", seed=seed), (images(3),))
                writer.remove(writer.add(draft(f"gone{seed}", seed=seed + 100), (images(3),)).id)
                assert kept in writer.variants()
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not done.wait(0.01):
        kept = [variant for variant in reader.variants() if variant.name.startswith("kept")]
        assert len(kept) >= seen
        seen = len(kept)
        for variant in kept:
            reader.load(variant.id)
    thread.join()
    assert not failures
    assert [variant.name for variant in reader.variants()] == [f"kept{seed}" for seed in range(4)]


def test_reading_does_not_wait_for_a_writer_of_this_or_another_connection(tmp_path: Path) -> None:
    store, [variant] = filled_store(tmp_path, draft("both"))
    for busy in (store, VariantStore.open(tmp_path)):
        with busy.metadata.alone():  # a reader that waited would wait for ever, or 30 seconds
            reader = threading.Thread(target=lambda: (store.table("panels"), store.load(variant.id)), daemon=True)
            reader.start()
            reader.join(20)
            assert not reader.is_alive()


def test_files_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path)
    (tmp_path / "panels").write_text("a file where the folder of the family should be")
    with pytest.raises(ServingError, match="cannot be written"):
        store.add(draft("both"), (images(3),))
    with pytest.raises(ServingError, match="cannot be written"):
        store.keep_validation("panels", labelled())
    assert store.variants() == ()


def test_a_disk_without_room_for_the_weights_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    store, [kept] = filled_store(tmp_path, draft("kept"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))  # no file beyond that, as on a full disk
        with pytest.raises(ServingError, match="cannot be written"):
            store.add(draft("large", width=40_000), (images(3),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert store.variants() == (kept,)
    assert not list(tmp_path.glob(".new-*"))


def test_damaged_validation_data_are_refused(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path, draft("both"))
    assert store.validation("panels") is None
    store.keep_validation("panels", labelled())
    path = tmp_path / "panels" / "validation.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ServingError, match="missing or damaged"):
        store.validation("panels")


def test_a_family_knows_its_own_json() -> None:
    content = json.loads(json.dumps(two_tasks().to_json()))
    assert Family.from_json(content) == two_tasks()
    assert isinstance(TwoHeads()(images(2))["shoe"], Tensor)
