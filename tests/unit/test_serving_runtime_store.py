"""A service over a store on disk: files that change underneath it, and profiles of this machine."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving.errors import ServingError
from serving.profiling import ProfileOptions, profile
from serving.queries import Query
from serving.records import Variant
from serving.runtime.events import Outcome
from serving.runtime.options import ServiceOptions
from serving.runtime.requests import InferRequest
from serving.runtime.service import Service
from serving.store import VariantStore
from tests.unit.serving_models import TASKS, draft, filled_store, images, labelled
from tests.unit.serving_runtime import run, until

QUICK = ProfileOptions(batches=(1, 4), max_seconds=0.02, max_drift=100)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    store, _ = filled_store(path, draft("first"), draft("second", seed=1, width=8))
    profile(store, "panels", labelled(), options=QUICK)
    store.close()
    return path


@pytest.fixture
def stored(made: Path, tmp_path: Path) -> Iterator[tuple[VariantStore, tuple[Variant, ...]]]:
    store = VariantStore.open(shutil.copytree(made, tmp_path / "store"))
    yield store, store.variants()
    store.close()


def ask(rows: int = 1, *, version: str | None = None, seed: int = 0) -> InferRequest:
    query = Query(tasks=frozenset(TASKS))
    return InferRequest(family="panels", query=query, inputs=(images(rows, seed),), received=time.monotonic(), version=version)


def serving(store: VariantStore, **options: object) -> Service:
    return Service(store, options=ServiceOptions(refresh_seconds=0, **options))  # type: ignore[arg-type]


def assert_answered_by(store: VariantStore, version: str, outputs: dict[str, torch.Tensor], request: InferRequest) -> None:
    with torch.no_grad():
        wanted = store.load(version)(*request.inputs)
    for task in TASKS:  # rows are computed together with others, by other kernels
        torch.testing.assert_close(outputs[task], wanted[task], rtol=1e-5, atol=1e-5)


def test_answers_in_batches_are_those_of_the_stored_network_alone(stored):
    store, variants = stored

    async def scenario() -> None:
        async with serving(store) as service:
            requests = [ask(rows, version=variants[0].id, seed=rows) for rows in (1, 5, 2, 3)]
            answers = await asyncio.gather(*map(service.answer, requests))
            for request, answer in zip(requests, answers, strict=True):
                assert_answered_by(store, variants[0].id, dict(answer.outputs), request)

    run(scenario)


def test_a_variant_whose_weights_were_altered_on_disk_is_never_served(stored):
    store, variants = stored
    weights = store.folder(variants[0].id) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")

    async def scenario() -> None:
        async with serving(store) as service:
            for seed in range(3):
                assert (await service.answer(ask(seed=seed))).version == variants[1].id
            with pytest.raises(ServingError, match="first"):
                await serving(store, pinned=("first",)).start()

    run(scenario)


def test_a_variant_is_replaced_on_disk_under_load_and_nothing_is_lost(stored):
    store, variants = stored

    async def scenario() -> None:
        async with serving(store) as service:
            versions: list[str] = []
            stop = asyncio.Event()

            async def client(seed: int) -> None:
                while not stop.is_set():
                    versions.append((await service.answer(ask(seed=seed))).version)

            clients = [asyncio.create_task(client(seed)) for seed in range(4)]
            await until(lambda: len(versions) > 20)
            await asyncio.to_thread(_replace, store, variants)
            assert await service.refresh()
            switched = len(versions) + len(clients)
            await until(lambda: len(versions) > switched + 20)
            stop.set()
            await asyncio.gather(*clients)
            current = {variant.id for variant in store.variants()}
            assert set(versions[switched:]) <= current
            assert set(service.status().residents) <= current
            assert service.ledger.rows() == [("panels", TASKS, Outcome.OK, len(versions))]

    run(scenario)


def test_what_was_profiled_with_other_threads_is_not_served(stored):
    store, _ = stored

    async def scenario() -> None:
        with pytest.raises(ServingError, match="these threads"):
            await serving(store, threads=2).start()

    run(scenario)


def _replace(store: VariantStore, variants: tuple[Variant, ...]) -> None:
    """Put a retrained network in the place of each variant, as another process would."""
    writer = VariantStore.open(store.path)
    for seed, variant in enumerate(variants):
        writer.remove(variant.id)
        writer.add(draft(variant.name, seed=10 + seed), (images(3),))
    profile(writer, "panels", labelled(), options=QUICK)
    writer.close()
