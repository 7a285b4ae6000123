"""``unified stack`` and ``unified.stack``: from results, job folders and model files to one module that torch alone runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unified
from tests.integration.command_line import unified_command
from tests.integration.fused_results import NUM_TRAIN, images_and_labels, write_result
from tests.unit.answering_models import alone, another, assert_near
from unified.answering.checking import largest_difference
from unified.cli import main
from unified.errors import UnifiedError


class Small(nn.Module):
    """A convolutional network; ``act`` and ``width`` are its architecture."""

    def __init__(self, width: int = 4, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), act(), nn.Dropout(0.2), nn.Flatten())
        self.head = nn.Linear(width * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def small(seed: int) -> nn.Module:
    torch.manual_seed(0)
    return another(Small(), seed)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    images, labels = images_and_labels()
    for seed in range(3):
        write_result(root / f"digit-{seed}", small(seed), images, labels["digit"])
    return root


def samples(count: int = 5) -> Tensor:
    return images_and_labels()[0][:count]


def test_a_folder_of_results_becomes_one_module(results, tmp_path, capsys):
    out = tmp_path / "digits.pt2"
    assert main(["stack", str(results), "--out", str(out), "--one-input", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "largest difference" in shown
    assert "ratio" in shown
    assert "3 x 1.5 k" in shown
    assert "comparing with each model alone" in shown
    module = torch.export.load(out).module()
    with torch.no_grad():
        assert_near(module(samples()), torch.stack(alone([small(seed).eval() for seed in range(3)], [samples()] * 3)))
    told = json.loads(out.with_suffix(".json").read_text())
    assert [member["name"] for member in told["members"]] == ["digit-0", "digit-1", "digit-2"]
    assert all(len(member["sha256"]) == 64 for member in told["members"])
    assert told["inputs"] == [{"name": None, "dtype": "float32", "shape": [1, 8, 8]}]
    assert told["tensors"]["head.weight"] == [3, 10, 144]
    assert told["measured_batch"] == 32
    assert told["relative_difference"] <= 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"digits.pt2", "digits.json"}


def test_each_its_own_input_and_json(results, tmp_path, capsys):
    out = tmp_path / "digits.pt2"
    folders = [str(results / "digit-2"), str(results / "digit-0")]
    assert main(["stack", *folders, "--out", str(out), "--batch-size", "6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["members"] == ["digit-2", "digit-0"]
    assert told["measured_batch"] == 6
    module = torch.export.load(out).module()
    inputs = torch.stack([samples(), samples(10)[5:]])
    with torch.no_grad():
        assert_near(module(inputs), torch.stack(alone([small(2).eval(), small(0).eval()], list(inputs))))


def test_model_files_say_themselves_what_they_take(tmp_path, capsys):
    for seed in range(2):
        unified.export(small(seed), samples(2), tmp_path / f"m{seed}.umodel")
    out = tmp_path / "made" / "two.pt2"
    assert main(["stack", str(tmp_path / "m0.umodel"), str(tmp_path / "m1.umodel"), "--out", str(out)]) == 0
    assert "any batch size" in capsys.readouterr().out
    assert torch.export.load(out).module()(torch.stack([samples()] * 2)).shape == (2, 5, 10)


def test_job_folders_and_trusted_files(results, tmp_path):
    images, labels = images_and_labels()
    models = {"a": small(1), "b": small(2)}
    for name, model in models.items():
        folder = tmp_path / "jobs" / name
        folder.mkdir(parents=True)
        torch.save((images[:NUM_TRAIN], labels["digit"][:NUM_TRAIN]), folder / "train.pt")
        torch.save(model, folder / "model.pt")
        job = {"name": name, "model": "model.pt", "data": {"train": "train.pt"}, "loss": "CrossEntropyLoss"}
        job |= {"optimizer": {"name": "SGD", "lr": 0.1}, "epochs": 1, "batch_size": 16}
        (folder / "job.json").write_text(json.dumps(job))
    out = tmp_path / "jobs.pt2"
    with pytest.raises(unified.InvalidSubmission, match="E-CLASS"):
        unified.stack(tmp_path / "jobs", out=out)
    stacked = unified.stack(tmp_path / "jobs", out=out, trust=True)
    assert stacked.names == ("a", "b")
    assert stacked.report.rows == 16
    # a file of a form without data of its own takes what the job beside it takes
    more = unified.stack([tmp_path / "jobs" / "a", tmp_path / "jobs" / "b" / "model.pt"], out=out, trust=True)
    assert more.names == ("a", "b")


def test_exported_programs_are_stacked(tmp_path):
    models = [small(seed).eval() for seed in range(2)]
    for seed, model in enumerate(models):
        shapes = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(model, (samples(),), dynamic_shapes=shapes), tmp_path / f"p{seed}.pt2")
    stacked = unified.stack(
        [tmp_path / "p0.pt2", tmp_path / "p1.pt2"], samples(), one_input=True, trust=True, out=tmp_path / "both.pt2"
    )
    with torch.no_grad():
        assert_near(stacked.module(samples()), torch.stack(alone(models, [samples()] * 2)))


# ---- what is refused


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["stack", *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (Small(width=5), "parameter body.0.weight is (5, 1, 3, 3) torch.float32 cpu against (4, 1, 3, 3) torch.float32 cpu"),
        (Small(act=nn.GELU), "operator 3 is aten.gelu.default against aten.relu.default"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "only the first has a parameter 1.weight"),
    ],
    ids=["width", "activation", "another"],
)
def test_another_architecture_is_told_in_a_line(other, why, results, tmp_path, capsys):
    path = tmp_path / "other.umodel"
    unified.export(other, samples(2), path)
    line = refused(capsys, results / "digit-0", path, "--out", tmp_path / "x.pt2")
    first = results / "digit-0" / "model.umodel"
    assert line.startswith(f"unified: {path} is not of the architecture of {first}: ")
    assert why in line
    assert not (tmp_path / "x.pt2").exists()


def test_what_is_no_model_is_told_in_a_line(results, tmp_path, capsys):
    assert "E-FUSE" in refused(capsys, tmp_path / "nothing", "--out", tmp_path / "x.pt2")
    torch.save(small(0), tmp_path / "m.pt")
    assert "--trust" in refused(capsys, tmp_path / "m.pt", "--out", tmp_path / "x.pt2")
    assert "does not say what it takes" in refused(capsys, tmp_path / "m.pt", "--trust", "--out", tmp_path / "x.pt2")


def test_a_file_of_another_name_is_a_usage_error(results, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["stack", str(results), "--out", str(tmp_path / "x.pt")])
    assert "ends in .pt2" in capsys.readouterr().err


def test_the_command_line_says_it_without_torch(tmp_path):
    done = unified_command("stack", "--help")
    assert done.returncode == 0, done.stderr
    assert "--one-input" in done.stdout


# ---- Python


def test_modules_are_not_changed_and_members_can_be_chosen_and_swapped():
    models = {name: small(seed).train() for seed, name in enumerate(("ann", "bob", "cem"))}
    before = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()}
    stacked = unified.stack(models, samples(), one_input=True, device="cpu")
    assert stacked.names == ("ann", "bob", "cem")
    assert stacked.file is None
    for name, model in models.items():
        assert model.training
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())
    new = small(9).eval()
    stacked.stack.set_member(1, new.state_dict())
    with torch.no_grad():
        assert_near(stacked.stack(samples(), members=[1]), torch.stack(alone([new], [samples()])))


def test_inputs_for_each_model():
    stacked = unified.stack([small(0), small(1)], [samples(4), samples(8)[4:]])
    assert stacked.report.rows == 4
    with pytest.raises(UnifiedError, match="inputs for each of 2 models, got 1"):
        unified.stack([small(0), small(1)], [samples(4)])
    with pytest.raises(UnifiedError, match="at least one model"):
        unified.stack([], samples(4))


def test_what_models_cannot_do_is_told():
    with pytest.raises(UnifiedError, match="'0' does not take the samples: RuntimeError"):
        unified.stack([small(0), small(1)], torch.zeros(4, 3))

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            shared = torch.zeros(4, 3)
            shared[:, 0] = self.linear(x)[:, 0]
            return shared

    with pytest.raises(UnifiedError, match="into a tensor that all members share"):
        unified.stack([Writes(), Writes()], torch.zeros(4, 3))


def test_a_stack_that_answers_otherwise_is_noticed():
    wanted = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    assert largest_difference(wanted.clone(), list(wanted))[:2] == (0.0, 0.0)
    off = largest_difference(wanted + torch.tensor([[0.0, 0.3], [0.0, 0.0]]), list(wanted))
    assert off[0] == pytest.approx(0.3, rel=1e-6)
    assert off[1] == pytest.approx(0.1, rel=1e-6)
    assert largest_difference(torch.zeros(2, 2), list(wanted))[0] == float("inf")
    with pytest.raises(UnifiedError, match="a model alone with"):
        largest_difference((wanted, wanted), list(wanted))
    with pytest.raises(UnifiedError, match="models alone with"):
        largest_difference(wanted.double(), list(wanted))
