"""Read and train mutants of a good archive: each is refused by a code, or is another model that trains or fails by itself.

``python -m tests.hostile.fuzz --mutations 20000 --seed 0`` prints how many came to which end; it exits with 1 if any was bad.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hostile.archives import EVAL, TRAIN, WEIGHTS, Parts, tiny
from tests.hostile.children import in_children
from tests.hostile.mutations import mutated
from unified.errors import InvalidSubmission
from unified.submission.interpreter import ArchiveModule
from unified.submission.umodel_read import load_umodel

BAD = "BAD"


def fuzz(mutations: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Try that many mutants; return how many came to which end, and what went badly: ``"NUMBER: END"``."""
    with tempfile.TemporaryDirectory() as folder:
        good = tiny(Path(folder))
        parts, path = Parts(good), Path(folder) / "mutant.umodel"
        plain = parts.write(Path(folder) / "plain.umodel")
        outcomes = list(in_children(mutations, lambda index: outcome(parts, plain, f"{seed} {index}", path)))
    bad = [f"{index}: {end}" for index, end in enumerate(outcomes) if not end.startswith(("E-", "accepted"))]
    return Counter(outcomes), bad


def outcome(good: Parts, plain: Path, seed: str, path: Path) -> str:
    """Make one mutant, read it, and train it if it is accepted; say how it went."""
    _, mended = mutated(good, seed, path)
    try:
        model = load_umodel(path, job="mutant")
    except InvalidSubmission as error:
        codes = {problem.code for problem in error.problems}
        return (
            min(codes) if all(str(problem).isprintable() for problem in error.problems) else f"{BAD}: prints control characters"
        )
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"{BAD}: {type(error).__name__}: {error}"
    if not mended and _hashed(path) != _hashed(plain):
        return f"{BAD}: accepted although a part does not match its hash"
    return _trained(model)


def _hashed(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {part: hashlib.sha256(archive.read(part)).hexdigest() for part in (TRAIN, EVAL, WEIGHTS)}


def _trained(model: ArchiveModule) -> str:
    """Take a step of training and one of evaluation."""
    torch.manual_seed(0)
    try:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1)
        inputs = model._umodel.manifest.inputs
        batch = {record.name: torch.ones(4, *record.shape, dtype=getattr(torch, record.dtype)) for record in inputs}
        losses = [leaf.float().sum() for leaf in _leaves(model(**batch)) if leaf.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()
        optimizer.step()
        model.eval()(**batch)
    except Exception as error:  # noqa: BLE001 - a job's own failure, which its trainer contains
        return f"accepted, fails by itself: {type(error).__name__}"
    return "accepted, trains"


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    inner = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [leaf for value in inner for leaf in _leaves(value)]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, bad = fuzz(options.mutations, options.seed)
    for end, count in counts.most_common():
        print(f"{count:7d}  {end}")
    print(f"{options.mutations} mutants, {len(bad)} of them went badly", *bad[:50], sep="\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
