"""Profiles of variants: what they score, and what they take on the machine at hand (MTLsys, section 4.3).

Each is made once for each variant and machine, scores once for each variant and data; only what is not there yet is measured,
or was disturbed. All runs with the threads that will serve, and a fixed piece of work before, between and after says whether
something else had the machine meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn

from serving.data import TaskData
from serving.errors import ServingError
from serving.fitting import input_problems, label_problems
from serving.hardware import Hardware
from serving.measuring import LoadTimes, time_inference, time_loads, time_reference, using_threads
from serving.profiles import Profile, Reference
from serving.records import Variant
from serving.scoring import score_network
from serving.store import VariantStore
from serving.table import Table

BATCHES = (1, 2, 4, 8, 16, 32)
GROUP_BYTES = 1 << 30  #: of networks that are in memory together to be measured in turns


class Stage(StrEnum):
    """What a profiling run does, in this order for each group of variants."""

    SCORES = "scores"
    LOADING = "loading"
    INFERENCE = "inference"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileProgress:
    """How far a profiling run is: ``done`` of ``total``, variants, or seconds of inference (of at most so many)."""

    stage: Stage
    done: float
    total: float


Progress = Callable[[ProfileProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How profiles are made.

    Attributes:
        batches: Batch sizes; 1 is always among them.
        max_seconds: Of inference, for each variant.
        max_drift: By which share medians of the reference may differ before a profile is suspect.
        max_spread: By which share its 95th percentile may be above them.
        force: Whether to measure what is there already.
    """

    batches: tuple[int, ...] = BATCHES
    max_seconds: float = 2.0
    max_drift: float = 0.25
    max_spread: float = 1.0
    force: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(rows, int) and rows >= 1 for rows in self.batches):
            raise ServingError(f"expected batch sizes from 1, got {self.batches}")
        limits = (self.max_seconds, self.max_drift, self.max_spread)
        if not all(limit > 0 for limit in limits):
            raise ServingError(f"expected max_seconds, max_drift and max_spread > 0, got {limits}")
        object.__setattr__(self, "batches", tuple(sorted({1, *self.batches})))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What a profiling run did.

    Attributes:
        hardware: The machine.
        table: All that can be selected now.
        scored: Ids that were scored.
        timed: Ids whose latency was measured.
        rejected: By id, why a variant cannot serve: an output is not finite, which keeps it out of every table, or its files
            cannot be used.
        suspect: Ids of profiles that were disturbed; another run measures them again.
        is_cold: Whether files could be dropped from the page cache for cold loads.
        seconds: That it took.
    """

    hardware: Hardware
    table: Table
    scored: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    suspect: tuple[str, ...] = ()
    is_cold: bool = True
    seconds: float = 0.0


def profile(
    store: VariantStore,
    family: str,
    data: TaskData | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    options: ProfileOptions | None = None,
    progress: Progress | None = None,
) -> ProfileReport:
    """Score and time the variants of a family, where that is not done yet, and keep it in the store.

    Args:
        store: Where they are.
        family: Which.
        data: Held-out samples with labels of every task; by default those that the store keeps.
        device: Where they are to be served.
        threads: With how many intra-op threads on the CPU. One answers small networks as fast as two do, and leaves
            a core to what receives requests.
        options: How.
        progress: Is told how far it is.

    Raises:
        ServingError: If there is no such family or device, or data are missing or do not fit the family.
    """
    begin = time.monotonic()
    hardware = Hardware.here(device, threads)
    data = _usable(store, family, data)
    run = _Run(store, family, hardware, options or ProfileOptions(), progress or _ignore)
    with using_threads(threads):
        scored, rejected = run.score(data)
        timed = run.time([variant for variant in store.variants(family) if variant.id not in rejected])
    rejected |= run.unreadable
    profiles = store.metadata.profiles(family, hardware.fingerprint)
    return ProfileReport(
        hardware=hardware,
        table=store.table(family, hardware.fingerprint),
        scored=scored,
        timed=timed,
        rejected=rejected,
        suspect=tuple(key for key, found in profiles.items() if found.is_suspect and key not in rejected),
        is_cold=all(found.is_cold for found in profiles.values()),
        seconds=time.monotonic() - begin,
    )


def _usable(store: VariantStore, family: str, data: TaskData | None) -> TaskData:
    definition = store.family(family)
    data = data if data is not None else store.validation(family)
    if data is None:
        raise ServingError(f"family {family!r}: the store keeps no held-out data of it; give some, with labels of every task")
    problems = [*input_problems(definition, data.inputs), *label_problems(definition, data)]
    if problems:
        raise ServingError("\n".join(f"family {family!r}, held-out data: {problem}" for problem in problems))
    return data


class _Run:
    """One profiling run of a family on a machine."""

    def __init__(
        self, store: VariantStore, family: str, hardware: Hardware, options: ProfileOptions, progress: Progress
    ) -> None:
        self._store, self._family, self._hardware = store, family, hardware
        self._options, self._progress = options, progress
        self._device = torch.device(hardware.device)
        self.unreadable: dict[str, str] = {}

    def score(self, data: TaskData) -> tuple[tuple[str, ...], dict[str, str]]:
        """Score what has no score on these data; return the ids of that, and all that is rejected with the reason."""
        metadata, digest = self._store.metadata, data.digest()
        definition = self._store.family(self._family)
        known = {} if self._options.force else metadata.scores(self._family, digest)
        todo = [variant for variant in self._store.variants(self._family) if variant.id not in known]
        for place, variant in enumerate(todo):
            self._tell(Stage.SCORES, place, len(todo))
            network, found = self._load(variant), None
            if network is not None:
                with self._noting(variant):
                    found = score_network(network, [definition.task(task) for task in variant.tasks], data, self._device)
            if found is None:
                continue
            with metadata.writing():
                metadata.put_scores(variant.id, digest, found)
        self._tell(Stage.SCORES, len(todo), len(todo))
        if metadata.data(self._family) != digest:
            with metadata.writing():
                metadata.use_data(self._family, digest)
        problems = {key: found for key, found in metadata.scores(self._family, digest).items() if isinstance(found, str)}
        return tuple(variant.id for variant in todo if variant.id not in self.unreadable), problems

    def time(self, variants: Sequence[Variant]) -> tuple[str, ...]:
        """Measure latencies that are not known, or were disturbed; return the ids of those variants."""
        known = {} if self._options.force else self._store.metadata.profiles(self._family, self._hardware.fingerprint)
        usable = [variant for variant in variants if variant.id not in self.unreadable]
        todo = [variant for variant in usable if not self._is_done(known.get(variant.id))]
        inputs = {rows: _rows(self._store.examples(self._family), rows) for rows in self._options.batches} if todo else {}
        done = 0
        for group in _groups(todo):
            found = self._measure(group, inputs, done, len(todo))
            done += len(group)
            with self._store.metadata.writing():
                for key, measured in found.items():
                    self._store.metadata.put_profile(key, self._hardware, measured)
        return tuple(variant.id for variant in todo if variant.id not in self.unreadable)

    def _load(self, variant: Variant) -> nn.Module | None:
        """Return a network on the device; None if its files cannot be used, which is noted."""
        network = None
        if variant.id not in self.unreadable:
            with self._noting(variant):
                network = self._store.load(variant.id).to(self._device)
        return network

    @contextmanager
    def _noting(self, variant: Variant) -> Iterator[None]:
        """Note what is wrong with a variant, which may also be removed at any time, and go on with others."""
        try:
            yield
        except ServingError as error:
            self.unreadable[variant.id] = str(error)

    def _is_done(self, known: Profile | None) -> bool:
        return known is not None and not known.is_suspect and set(self._options.batches) <= set(known.batches)

    def _measure(
        self, group: Sequence[Variant], inputs: Mapping[int, Sequence[Tensor]], done: int, total: int
    ) -> dict[str, Profile]:
        before = time_reference(self._device)
        loads: dict[str, LoadTimes] = {}
        for place, variant in enumerate(group):
            self._tell(Stage.LOADING, done + place, total)
            with self._noting(variant):
                loads[variant.id] = time_loads(
                    partial(self._store.load, variant.id), self._store.folder(variant.id), inputs[1], self._device
                )
        self._tell(Stage.LOADING, done + len(group), total)
        limit = self._options.max_seconds * len(group)
        self._tell(Stage.INFERENCE, 0, limit)
        networks = {variant.id: network for variant in group if (network := self._load(variant)) is not None}
        if not networks:
            return {}
        latencies, between = time_inference(
            networks,
            inputs,
            self._device,
            max_seconds=limit,
            tick=lambda seconds: self._tell(Stage.INFERENCE, min(seconds, limit), limit),
        )
        self._tell(Stage.INFERENCE, limit, limit)
        reference = Reference(
            before_ms=before, p50_ms=between.p50_ms, p95_ms=between.p95_ms, after_ms=time_reference(self._device)
        )
        return {
            key: Profile(
                infer=latencies[key],
                load_cold_ms=loads[key].cold_ms,
                load_warm_ms=loads[key].warm_ms,
                is_cold=loads[key].is_cold,
                reference=reference,
                is_suspect=reference.drift > self._options.max_drift or reference.spread > self._options.max_spread,
                measured=time.time(),
            )
            for key in latencies
        }

    def _tell(self, stage: Stage, done: float, total: float) -> None:
        if total:
            self._progress(ProfileProgress(stage=stage, done=done, total=total))


def _groups(variants: Sequence[Variant]) -> Iterator[list[Variant]]:
    """Split variants into groups that fit into memory together."""
    group: list[Variant] = []
    size = 0
    for variant in variants:
        if group and size + variant.num_bytes > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(variant)
        size += variant.num_bytes
    if group:
        yield group


def _rows(examples: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Return so many rows of examples, repeated where there are fewer."""
    return [tensor.repeat(-(-rows // len(tensor)), *[1] * (tensor.ndim - 1))[:rows].contiguous() for tensor in examples]


def _ignore(progress: ProfileProgress) -> None:
    pass
