"""Variants on disk: ``<store>/<family>/<id>/{variant.json, graph.json, model.safetensors}`` and ``<store>/store.sqlite``.

The database says what there is; its row is written last and removed first, so that an interrupted change leaves the old state
and files that the next one who opens the store removes. Any number of processes may read while others add, remove and profile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from fusion.timer import evaluating
from serving.counting import count
from serving.data import TaskData
from serving.drafts import Draft
from serving.errors import DuplicateVariantError, ServingError
from serving.fitting import input_problems
from serving.hardware import Hardware
from serving.metadata import Metadata
from serving.networks.programs import read_program, write_program
from serving.profiles import Known, make_table
from serving.records import Family, Variant, check_name
from serving.table import Table
from serving.variant_files import (
    RECORD,
    identify,
    load_data,
    load_inputs,
    new_folder,
    put_folder,
    save_data,
    save_inputs,
    settle,
    sweep,
    writable,
)

NUM_EXAMPLES = 8  #: rows of a family's inputs that are kept; enough to read a network and check what is written of it
_DATABASE, _EXAMPLES, _VALIDATION = "store.sqlite", "examples.safetensors", "validation.safetensors"
# A program may use other kernels than the module it was made of (fused attention, say), which round otherwise.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


class VariantStore:
    """An open store. Threads may share it; a forked process may not and opens its own.

    Args:
        path: Its folder.
        metadata: Its database.
        family: To which :meth:`add` adds.
    """

    def __init__(self, path: Path, metadata: Metadata, family: str | None = None) -> None:
        self.path = path
        self.metadata = metadata
        self._family = family
        self._tables: dict[tuple[str, str | None], tuple[int, Table]] = {}
        with metadata.alone():
            sweep(path, {name: {variant.id for variant in metadata.variants(name)} for name in metadata.families()})

    @classmethod
    def create(cls, path: Path | str, family: Family) -> Self:
        """Make a store, or open one that is there, and see to it that it has this family, to which it then adds.

        Raises:
            ServingError: If the folder holds something else, the store has another family of that name, or it cannot be
                written or read.
        """
        path = Path(path)
        database = path / _DATABASE
        try:
            if not database.exists() and path.exists() and any(path.iterdir()):
                raise ServingError(f"{path} is not empty and no store of variants; give a new folder")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServingError(f"{path} cannot be made or read ({error.strerror}); give a folder that can") from None
        metadata = Metadata.open(database, create=True)
        with metadata.writing():
            known = metadata.families().get(family.name)
            if known is None:
                metadata.add_family(family)
            elif known != family:
                raise ServingError(
                    f"{path} has a family {family.name!r} with other inputs or tasks: expected {known}, got {family};"
                    " give the new one another name or folder"
                )
        return cls(path, metadata, family.name)

    @staticmethod
    def is_there(path: Path | str) -> bool:
        """Return whether a folder holds a store."""
        return (Path(path) / _DATABASE).is_file()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a store that is there.

        Raises:
            ServingError: If it is missing, of something else, of a newer version, damaged, or cannot be written.
        """
        path = Path(path)
        if not cls.is_there(path):
            raise ServingError(f"{path} is no store of variants: it has no {_DATABASE}; 'unified variants build' makes one")
        metadata = Metadata.open(path / _DATABASE)
        families = metadata.families()
        return cls(path, metadata, next(iter(families)) if len(families) == 1 else None)

    def close(self) -> None:
        """Close its database."""
        self.metadata.close()

    @property
    def version(self) -> int:
        """Grows with each change that anybody has made to what there is or what was measured of it."""
        return self.metadata.version

    def families(self) -> dict[str, Family]:
        """Return all families by name, the oldest first."""
        return self.metadata.families()

    def family(self, name: str) -> Family:
        """Return one family; raises ServingError if there is none of that name."""
        families = self.families()
        if name not in families:
            raise ServingError(f"{self.path} has no family {name!r}; it has {', '.join(families) or 'none'}")
        return families[name]

    def variants(self, family: str | None = None) -> tuple[Variant, ...]:
        """Return the variants of one family, or of all, in the order in which they were added."""
        return self.metadata.variants(family)

    def variant(self, key: str) -> Variant:
        """Return the variant of an id; raises ServingError if there is none."""
        found = self.metadata.variant(key)
        if found is None:
            raise ServingError(f"{self.path} has no variant {key!r}; 'unified variants list' prints those it has")
        return found

    def folder(self, key: str) -> Path:
        """Return where the files of a variant lie."""
        return self.path / self.variant(key).family / key

    def add(self, draft: Draft, examples: tuple[Tensor, ...], *, family: str | None = None) -> Variant:
        """Add a network as a variant, once what was written answers as it does.

        Args:
            draft: The network and what it is.
            examples: Inputs, ``(n, ...)`` each, on the CPU; the first few of the first draft of a family are kept.
            family: By default the one that :meth:`create` was given, or the only one.

        Raises:
            DuplicateVariantError: If there is a variant of that name, or one with the same network, weights and tasks.
            ServingError: If the draft does not fit the family, gives an output that is not finite, or cannot be written so
                that it answers the same.
        """
        family = family or self._family
        if family is None:
            raise ServingError(f"{self.path} has several families, {', '.join(self.families())}: say which, as family=…")
        known = self.family(family)
        self._check_new(draft.name, family)
        tasks = _tasks_of(draft, known)
        examples = tuple(tensor.detach() for tensor in examples)
        wanted = _answers(draft, known, examples)
        with ExitStack() as stack:
            stack.enter_context(writable(self.path))
            with self.metadata.alone():
                folder = stack.enter_context(new_folder(self.path))
            program = folder / "program"
            program.mkdir()
            write_program(draft.module, examples, program)
            variant = self._describe(draft, known, tasks, program, examples, wanted)
            (program / RECORD).write_text(json.dumps(variant.to_json(), indent=1))
            settle(program)
            with self.metadata.writing():
                self._check_new(draft.name, family, variant.id)
                home = self.path / family
                put_folder(program, home / variant.id)
                if not (home / _EXAMPLES).exists():
                    save_inputs(home / _EXAMPLES, [tensor[:NUM_EXAMPLES] for tensor in examples])
                self.metadata.add_variant(variant)
        return variant

    def remove(self, key: str) -> None:
        """Remove a variant and all that was measured of it; raises ServingError if there is none of that id."""
        family = self.variant(key).family
        with self.metadata.writing():
            self.metadata.remove_variant(key)
        with self.metadata.alone():
            sweep(self.path, {family: {variant.id for variant in self.variants(family)}})

    def load(self, key: str) -> nn.Module:
        """Return the network of a variant, in eval mode, on the CPU: from inputs by position to ``{task: tensor}``.

        Raises:
            ServingError: If there is none of that id, or its files are missing, damaged, or not those that were added.
        """
        variant = self.variant(key)
        folder = self.path / variant.family / key
        if identify(folder, variant.tasks) != (key, variant.weights_sha256):
            raise ServingError(
                f"{folder}: the files of variant {variant.name!r} are not those that were added; remove it and build it again"
            )
        return read_program(folder)

    def examples(self, family: str) -> tuple[Tensor, ...]:
        """Return up to eight samples of a family's inputs; raises ServingError if nothing was added yet."""
        path = self.path / self.family(family).name / _EXAMPLES
        if not path.exists():
            raise ServingError(f"family {family!r} has no variant yet, and so no example of its inputs; add one first")
        return load_inputs(path)

    def keep_validation(self, family: str, data: TaskData) -> None:
        """Keep held-out data, by which the variants of a family are scored wherever the store is taken."""
        home = self.path / self.family(family).name
        with writable(self.path), self.metadata.alone():
            home.mkdir(exist_ok=True)
            save_data(home / _VALIDATION, data)

    def validation(self, family: str) -> TaskData | None:
        """Return the data that were kept, None if there are none; raises ServingError if they are damaged."""
        path = self.path / self.family(family).name / _VALIDATION
        return load_data(path) if path.exists() else None

    def hardware(self, family: str | None = None) -> dict[str, Hardware]:
        """Return by fingerprint the machines that variants were profiled on, the latest first."""
        return self.metadata.hardware(family)

    def table(self, family: str, hardware: str | None = None) -> Table:
        """Return the variants of a family that were scored, and profiled on a machine; empty if there are none.

        Args:
            family: Its name.
            hardware: A fingerprint. By default that of this machine, with the device and threads of the latest profile.
        """
        version = self.version
        known = self._tables.get((family, hardware))
        if known is not None and known[0] == version:
            return known[1]
        definition = self.family(family)
        with self.metadata.reading():
            version = self.version
            place, everything = self._known(family, hardware)
        table = make_table(definition, place, [found for each in everything if (found := each.profiled) is not None])
        self._tables[family, hardware] = (version, table)
        return table

    def known(self, family: str, hardware: str | None = None) -> tuple[str, tuple[Known, ...]]:
        """Return a fingerprint, and all variants of a family with what is known of them on that machine.

        Args:
            family: Its name.
            hardware: A fingerprint; by default as in :meth:`table`.
        """
        self.family(family)
        with self.metadata.reading():
            return self._known(family, hardware)

    def _known(self, family: str, hardware: str | None) -> tuple[str, tuple[Known, ...]]:
        here = (key for key, found in self.hardware(family).items() if found.is_here)
        place = hardware or next(here, None) or Hardware.here().fingerprint
        return place, tuple(self.metadata.known(family, place))

    def _check_new(self, name: str, family: str, key: str | None = None) -> None:
        check_name(name, "a variant's name")
        for variant in self.variants(family):
            if variant.name == name:
                raise DuplicateVariantError(
                    f"family {family!r} has a variant {name!r}, {variant.id}: remove it first, or give this one another name",
                    variant.id,
                )
        known = None if key is None else self.metadata.variant(key)
        if known is not None:
            raise DuplicateVariantError(
                f"variant {name!r} is the same as {known.name!r} of family {known.family!r} (network, weights and tasks):"
                f" leave it out, or remove {known.id} first",
                known.id,
            )

    def _describe(
        self,
        draft: Draft,
        family: Family,
        tasks: tuple[str, ...],
        program: Path,
        examples: tuple[Tensor, ...],
        wanted: Mapping[str, Tensor],
    ) -> Variant:
        """Return what is to be known of a program, and make sure that it answers as the draft does."""
        network = read_program(program)
        with torch.no_grad():
            given = network(*examples)
        for task in tasks:
            if not torch.allclose(given[task], wanted[task], rtol=_RELATIVE, atol=_ABSOLUTE):
                worst = float((given[task] - wanted[task]).abs().max())
                raise ServingError(
                    f"variant {draft.name!r}, task {task!r}: what was written answers otherwise, by up to {worst:g};"
                    " its forward must depend on its inputs and weights only"
                )
        parents = {variant.name: variant.id for variant in self.variants(family.name)}
        size = count(network, examples)
        key, weights = identify(program, tasks)
        return Variant(
            id=key,
            name=draft.name,
            family=family.name,
            tasks=tasks,
            source=draft.source,
            parent=None if draft.parent is None else parents.get(draft.parent),
            ratio=draft.ratio,
            achieved=dict(draft.achieved),
            num_parameters=sum(parameter.numel() for parameter in draft.module.parameters()),  # a program's are buffers
            flops=size.flops,
            num_bytes=size.num_bytes,
            weights_sha256=weights,
            provenance=dict(draft.provenance) | ({"parent": draft.parent} if draft.parent else {}),
        )


def _tasks_of(draft: Draft, family: Family) -> tuple[str, ...]:
    """Return the tasks of a draft in the family's order."""
    unknown = sorted(set(draft.tasks) - set(family.task_names))
    if unknown or not draft.tasks:
        raise ServingError(
            f"variant {draft.name!r}: expected tasks of family {family.name!r}, {', '.join(family.task_names)};"
            f" got {', '.join(unknown) or 'none'}"
        )
    if not 0 <= draft.ratio < 1:
        raise ServingError(f"variant {draft.name!r}: expected a ratio from 0 to less than 1, got {draft.ratio}")
    return tuple(task for task in family.task_names if task in draft.tasks)


def _answers(draft: Draft, family: Family, examples: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Return what a draft answers to examples; all that is wrong with either is refused at once."""
    problems = input_problems(family, examples)
    if problems:
        raise ServingError(f"variant {draft.name!r}: {'; '.join(problems)}")
    with evaluating(draft.module), torch.no_grad():
        found = draft.module(*examples)
    if not isinstance(found, Mapping) or set(found) != set(draft.tasks):
        given = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise ServingError(f"variant {draft.name!r}: expected outputs by task, {sorted(draft.tasks)}; got {given}")
    rows = len(examples[0])
    for name, output in found.items():
        shape = (rows, *family.task(name).shape)
        if tuple(output.shape) != shape:
            problems.append(f"task {name!r}: expected an output {shape}, got {tuple(output.shape)}")
        elif not bool(torch.isfinite(output).all()):
            problems.append(f"task {name!r}: an output is not finite; train it again with a lower rate, or leave it out")
    if problems:
        raise ServingError(f"variant {draft.name!r}: {'; '.join(problems)}")
    return found
