"""``unified variants build`` as its users meet it: from a network in a file to a store of variants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unified
from fusion.graph.saving import save as save_fused
from fusion.merging.saving import save as save_merged
from serving.records import Source
from serving.store import VariantStore
from tests.integration.command_line import PATIENCE_SECONDS, environment
from tests.integration.fused_results import images_and_labels, write_result
from tests.unit.fused_trees import forked
from tests.unit.merging_networks import LeNet, inputs_of, random_merged
from unified.cli import main
from unified.errors import UnifiedError

AS_IT_IS = ("--train-epochs", "0", "--finetune-epochs", "0")


class Digits(nn.Module):
    """A small encoder with a head for the digit, one for its parity, and one for how much ink there is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU()
        )
        self.heads = nn.ModuleDict({"digit": nn.Linear(16, 10), "parity": nn.Linear(16, 2), "ink": nn.Linear(16, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {task: head(features) for task, head in self.heads.items()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained network and its data."""
    root = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    images, labels = images_and_labels()
    unified.export(Digits(), images[:2], root / "digits.umodel")
    targets = {"digit": labels["digit"], "parity": labels["parity"], "ink": images.mean((1, 2, 3))}
    torch.save({"inputs": images, "targets": targets}, root / "data.pt")
    return root


def build(*arguments: object) -> int:
    return main(["variants", "build", *map(str, arguments)])


def names(out: Path) -> list[str]:
    return [variant.name for variant in VariantStore.open(out).variants()]


def failing(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert build(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("unified: ") for line in captured.err.splitlines())
    return captured.err


def test_a_network_in_a_file_becomes_both_systems_in_a_store(digits, tmp_path):
    out = tmp_path / "variants"
    arguments = [digits / "digits.umodel", "--data", digits / "data.pt", "--out", out, "--ratios", "0.5", "--json"]
    quick = ["--train-epochs", "1", "--finetune-epochs", "1", "--slots", "2", "--threads", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "unified", "variants", "build", *map(str, [*arguments, *quick])]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["stage"] for event in events if event["event"] == "StageBegan"] == ["train", "prune", "fine-tune"]
    *_, last = events
    assert (last["event"], last["family"], last["left_out"]) == ("Built", "digits", {})
    assert "of the training data are held out" in last["notes"][0]
    store = VariantStore.open(out)
    found = {variant.name: variant for variant in store.variants()}
    assert set(found) == {variant["name"] for variant in last["variants"]}
    assert len(found) == 4 + 3
    assert {variant.source for variant in found.values()} == {Source.PRUNED, Source.HEAD_REMOVED, Source.SINGLE}
    (family,) = store.families().values()
    assert [spec.name for spec in family.inputs] == ["image"]
    assert family.task("ink").variance < 1  # of the training targets
    half = found["parity-p50"]
    assert half.achieved["parameters"] > 0.4
    assert half.provenance["parent"] == "parent"
    assert half.provenance["made_from"]["epochs"] == 1
    assert half.provenance["fine_tuning"]["loss"] > 0
    held_out = store.validation("digits")
    assert held_out is not None
    assert len(held_out) == 144


def test_a_merged_network_becomes_its_subsets_and_is_pruned_only_on_request(tmp_path, capsys):
    merged = random_merged(LeNet, 2, seed=0)
    save_merged(merged, tmp_path / "result" / "merged")
    inputs = inputs_of(LeNet, rows=40)
    labels = {task: torch.arange(40) % 2 for task in merged.tasks}
    torch.save({"inputs": inputs, "targets": labels}, tmp_path / "data.pt")
    out, given = tmp_path / "variants", (tmp_path / "result", "--data", tmp_path / "data.pt")
    assert build(*given, "--out", out) == 0
    printed = capsys.readouterr().out
    first, second = merged.tasks
    assert names(out) == ["merged-all", f"merged-{first}", f"merged-{second}"]
    assert "3 variants of result in" in printed
    store = VariantStore.open(out)
    whole, *parts = store.variants()
    assert [part.parent for part in parts] == [whole.id] * 2
    answer = store.load(parts[0].id)(inputs[:3])
    torch.testing.assert_close(answer[first], merged.eval()(inputs[:3])[first], rtol=1e-5, atol=1e-5)  # other order of sums
    assert build(*given, "--out", tmp_path / "pruned", "--ratios", "0.3", *AS_IT_IS) == 0
    assert names(tmp_path / "pruned")[3:] == ["all-p30", f"{first}-p30", f"{second}-p30"]


def test_a_fused_network_is_taken_as_it_is_and_pruned(tmp_path):
    tree, folder = forked(), tmp_path / "fused"
    inputs = torch.randn(40, 5)
    save_fused(tree, folder, inputs[:2])
    unified.export(tree, inputs[:2], folder / "model.umodel")
    targets = {task: torch.randn(40, 5) for task in tree(inputs[:2])}
    torch.save({"inputs": inputs, "targets": targets}, tmp_path / "data.pt")
    arguments = (folder, "--data", tmp_path / "data.pt", "--out", tmp_path / "variants", "--ratios", "0.5")
    assert build(*arguments, "--finetune-epochs", "0", "--subsets", next(iter(targets))) == 0
    first = next(iter(targets))
    assert names(tmp_path / "variants") == [f"fused-{first}", f"{first}-p50"]


def test_what_is_left_out_is_told_and_the_exit_code_says_so(digits, tmp_path, capsys):
    """A thousandth of 8 channels is none of them: without training the two are one network."""
    given = (digits / "digits.umodel", "--data", digits / "data.pt", "--out", tmp_path / "variants", *AS_IT_IS)
    assert build(*given, "--ratios", "0,0.001", "--subsets", "ink") == 3
    printed = capsys.readouterr().out
    assert "left out ink-p0.1: variant 'ink-p0.1' is the same as 'ink-p00'" in printed
    assert names(tmp_path / "variants") == ["ink-p00"]


def test_a_module_is_built_from_python(tmp_path):
    images, labels = images_and_labels()
    targets = {"digit": labels["digit"], "parity": labels["parity"], "ink": images.mean((1, 2, 3))}
    parts = {"train": slice(0, 100), "test": slice(100, 150)}
    data = {name: (images[rows], {task: each[rows] for task, each in targets.items()}) for name, rows in parts.items()}
    building = unified.build_variants(
        Digits(), data, tmp_path, name="python", ratios=(0.0,), subsets=(("ink", "digit"),), train_epochs=0, finetune_epochs=0
    )
    assert [variant.name for variant in building.built.variants] == ["digit_ink-p00"]
    assert building.notes == ()
    with pytest.raises(UnifiedError, match="Module, a merged network or a path, got a function"):
        unified.build_variants(lambda inputs: inputs, data, tmp_path, name="python")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--subsets", "digit,height"), "unknown: height"),
        (("--weights", "height=2"), "weights of height"),
        (("--systems", "both", *AS_IT_IS), "never trained for several tasks"),
        (("--name", "a b"), "a family's name"),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is_trained(digits, tmp_path, capsys, more, message):
    arguments = (digits / "digits.umodel", "--data", digits / "data.pt", "--out", tmp_path / "variants", *more)
    assert message in failing(*arguments, capsys=capsys)


def test_parents_and_data_that_do_not_fit_are_refused(digits, tmp_path, capsys):
    images, labels = images_and_labels()
    out = ("--out", tmp_path / "variants")
    assert "nothing there" in failing(tmp_path / "none", "--data", digits / "data.pt", *out, capsys=capsys)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    write_result(tmp_path / "plain", plain, images, labels["digit"])
    told = failing(tmp_path / "plain", "--data", digits / "data.pt", *out, capsys=capsys)
    assert "expected a network that returns a dict with a tensor for each task, got a Tensor" in told
    torch.save({"inputs": images, "targets": {"digit": labels["digit"]}}, tmp_path / "few.pt")
    told = failing(digits / "digits.umodel", "--data", tmp_path / "few.pt", *out, capsys=capsys)
    assert "task 'parity': expected labels of it in the training data; got labels of digit" in told
    torch.save((images, labels["digit"]), tmp_path / "one.pt")
    told = failing(digits / "digits.umodel", "--data", tmp_path / "one.pt", *out, capsys=capsys)
    assert "expected a dict of tensors by task, got a Tensor" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    told = failing(digits / "digits.umodel", "--data", digits / "data.pt", "--out", tmp_path / "other", capsys=capsys)
    assert "not empty and no store" in told


def test_wrong_values_are_usage_errors(capsys):
    for option, value in (("--ratios", "0,1"), ("--weights", "age"), ("--subsets", ";"), ("--criterion", "size")):
        with pytest.raises(SystemExit) as exit_:
            build("a", "--data", "b", "--out", "c", option, value)
        assert exit_.value.code == 2
        assert option in capsys.readouterr().err
