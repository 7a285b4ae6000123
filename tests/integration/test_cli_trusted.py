"""The command line with what users bring of their own: models that run code, and schedulers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schedulers.registry import BUILT_INS
from tests.integration.batches import TRAIN, describe, make_model
from tests.integration.command_line import (
    RESULT_FILES,
    assert_equals_alone,
    environment,
    unified_command,
    write_data,
)

POLICY = """
from schedulers.base import Steps
from schedulers.ordering import by_key


class LargestFirst:
    needs = frozenset({"num_parameters"})

    def __init__(self, steps: str = "5") -> None:
        self.steps = int(steps)

    def select(self, now, ready, slots):
        return by_key(ready, slots, key=lambda unit: (-unit.num_parameters,), quantum=Steps(self.steps))
"""


class Own(nn.Sequential):
    """A class of one's own, which a pickle only names: one of torch.nn's alone would be rebuilt without trust."""


@pytest.fixture(scope="module")
def trusted_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a pickled whole module, as ``.pt2`` and as TorchScript."""
    root = write_data(tmp_path_factory.mktemp("trusted") / "jobs")
    for name, file in TRUSTED.items():
        folder = root / name
        folder.mkdir()
        files = {"model": file, "data": {"train": "../data/train.pt", "test": "../data/test.pt"}}
        (folder / "job.json").write_text(json.dumps(describe("mlp", name=name) | files))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            write_trusted(make_model("mlp"), name, folder / file)
    return root


TRUSTED = {"pickle": "model.pth", "pt2": "model.pt2", "torchscript": "model.pt"}


def write_trusted(model: nn.Module, form: str, path: Path) -> None:
    if form == "pickle":
        torch.save(Own(*model), path)
    elif form == "pt2":
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model.train(), (TRAIN[0][:4],), dynamic_shapes=batch), path)
    else:
        torch.jit.script(model).save(path)


def read_trusted(form: str, path: Path) -> Mapping[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        if form == "pickle":
            module = torch.load(path, weights_only=False)
            assert type(module) is Own
        else:
            module = torch.export.load(path).module() if form == "pt2" else torch.jit.load(path)
        return module.state_dict()


def test_models_that_run_code_need_trust(trusted_jobs, tmp_path):
    done = unified_command("run", trusted_jobs, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert [line.partition("]")[0].partition("[")[2] for line in lines] == ["E-CLASS", "E-TRUST", "E-TRUST"]
    assert all("--trust" in line for line in lines)


@pytest.fixture(scope="module")
def trusted_run(trusted_jobs: Path) -> tuple[Path, Any]:
    """With trust, under a scheduler that is a file of the user's."""
    out, plug_in = trusted_jobs.parent / "out", trusted_jobs.parent / "plug-in"
    plug_in.mkdir()
    (plug_in / "own_policy.py").write_text(POLICY)
    options = ["--trust", "--slots", 1, "--threads", 1, "--scheduler", "own_policy:LargestFirst:steps=4"]
    done = unified_command("run", trusted_jobs, "--out", out, *options, env=environment(plug_in))
    return out, done


@pytest.mark.parametrize("form", TRUSTED)
def test_a_trusted_model_trains_as_alone_and_comes_back_in_its_own_form(form, trusted_run):
    out, done = trusted_run
    assert done.returncode == 0, done.stderr
    assert_equals_alone(out / form, "mlp")
    assert {path.name for path in (out / form).iterdir()} == RESULT_FILES - {"model.umodel"} | {TRUSTED[form]}
    weights = torch.load(out / form / "state_dict.pt", weights_only=True)
    returned = read_trusted(form, out / form / TRUSTED[form])
    assert list(returned) == list(weights)
    assert all(torch.equal(returned[name], value) for name, value in weights.items())


def test_a_scheduler_of_ones_own_decides(trusted_run):
    summary = json.loads((trusted_run[0] / "summary.json").read_text())
    assert summary["run"]["scheduler"] == "own_policy:LargestFirst:steps=4"
    steps = {name: job["steps"] for name, job in summary["jobs"].items()}
    assert {name: job["turns"] for name, job in summary["jobs"].items()} == {n: -(-s // 4) for n, s in steps.items()}


def test_a_scheduler_of_an_installed_package_is_listed(tmp_path):
    (tmp_path / "own_policy.py").write_text(POLICY)
    metadata = tmp_path / "own-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[unified.schedulers]\nlargest = own_policy:LargestFirst\n")
    done = unified_command("schedulers", env=environment(tmp_path))
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [*BUILT_INS, "largest"]
