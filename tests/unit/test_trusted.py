"""Trusted forms load into modules that train as the originals do, and are written again with new weights."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from tests.zoo import LeNet, lenet, loss_of
from unified.admission import ModelForm
from unified.errors import InvalidSubmission
from unified.submission.trusted import load_trusted, save_trusted

FORMS = [ModelForm.PICKLE, ModelForm.PT2, ModelForm.TORCHSCRIPT, ModelForm.OBJECT]


def write(model: nn.Module, form: ModelForm, path: Path, *, training: bool = True) -> None:
    model.train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        write_quietly(model, form, path)


def write_quietly(model: nn.Module, form: ModelForm, path: Path) -> None:
    if form is ModelForm.PICKLE:
        torch.save(model, path)
    elif form is ModelForm.OBJECT:
        path.write_bytes(cloudpickle.dumps(model))
    elif form is ModelForm.PT2:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model, (torch.randn(4, 1, 28, 28),), dynamic_shapes=shapes), path)
    else:
        torch.jit.script(model).save(path)


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen = []
    for inputs, target in batches:
        model.train()
        optimizer.zero_grad()
        loss = loss_of(model(inputs), target)
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            seen += [loss.detach(), model(inputs)]
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_trains_as_the_original(form, tmp_path):
    case = lenet()
    batches = [batch for batch in case.batches if len(batch[1]) > 1]  # a .pt2 has no place for a batch of one
    write(case.model, form, tmp_path / "model.pt")
    loaded = load_trusted(tmp_path / "model.pt", form)
    assert loaded.training
    assert list(loaded.state_dict()) == list(case.model.state_dict())
    expected = train(case.model, batches)
    assert all(torch.equal(*pair) for pair in zip(expected, train(loaded, batches), strict=True))
    ours = loaded.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in case.model.state_dict().items())


def test_pt2_exported_in_evaluation_mode_trains(tmp_path):
    case = lenet()
    write(case.model, ModelForm.PT2, tmp_path / "model.pt2", training=False)
    loaded = load_trusted(tmp_path / "model.pt2", ModelForm.PT2)
    expected = train(case.model, case.batches[:3])
    assert all(torch.equal(*pair) for pair in zip(expected, train(loaded, case.batches[:3]), strict=True))


@pytest.mark.parametrize("form", FORMS[:3])
def test_written_again_with_new_weights(form, tmp_path):
    case = lenet()
    write(case.model, form, tmp_path / "model.pt")
    other = LeNet()
    save_trusted(tmp_path / "model.pt", form, other.state_dict(), tmp_path / "again.pt")
    again = load_trusted(tmp_path / "again.pt", form).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="other names"):
        save_trusted(tmp_path / "model.pt", form, {}, tmp_path / "again.pt")


def test_an_object_has_no_file_to_write_again(tmp_path):
    model = LeNet()
    write(model, ModelForm.OBJECT, tmp_path / "model.staged")
    with pytest.raises(ValueError, match="no file"):
        save_trusted(tmp_path / "model.staged", ModelForm.OBJECT, model.state_dict(), tmp_path / "again")


def test_a_local_class_is_staged_with_its_code(tmp_path):
    class Local(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = Local(3, 2)
    write(model, ModelForm.OBJECT, tmp_path / "model.staged")
    loaded = load_trusted(tmp_path / "model.staged", ModelForm.OBJECT)
    inputs = torch.randn(4, 3)
    assert torch.equal(loaded(inputs), model(inputs))


class Missing(nn.Linear):
    pass


def test_a_class_that_is_not_there_is_named(tmp_path, monkeypatch):
    torch.save(Missing(2, 2), tmp_path / "model.pt")
    monkeypatch.delattr("tests.unit.test_trusted.Missing")
    with pytest.raises(InvalidSubmission, match=r"Missing.*unified\.export"):
        load_trusted(tmp_path / "model.pt", ModelForm.PICKLE)


class Raises:
    def __reduce__(self) -> tuple:
        return (divmod, (1, 0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02.", pickle.dumps(Raises())])
def test_damaged_files_are_reported(form, content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InvalidSubmission) as caught:
        load_trusted(tmp_path / "model.pt", form, job="lenet")
    assert caught.value.problems[0].job == "lenet"


def test_weights_alone_are_refused(tmp_path):
    torch.save(LeNet().state_dict(), tmp_path / "model.pt")
    with pytest.raises(InvalidSubmission, match="weights without their model"):
        load_trusted(tmp_path / "model.pt", ModelForm.PICKLE)


def test_copies_of_a_pt2_switch_on_their_own(tmp_path):
    case = lenet()
    write(case.model, ModelForm.PT2, tmp_path / "model.pt2")
    loaded = load_trusted(tmp_path / "model.pt2", ModelForm.PT2).eval()
    inputs = case.batches[0][0]
    assert torch.equal(loaded(inputs), case.model.eval()(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin = copy.deepcopy(loaded)
    assert torch.equal(twin(inputs), loaded(inputs))
