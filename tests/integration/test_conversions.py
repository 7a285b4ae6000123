"""``unified convert`` and ``unified restore``: between an owner's own code and the forms that others accept."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import unified
from unified.cli import main
from unified.converting.own_code import build_own
from unified.converting.samples import of_shapes, parse_shape
from unified.errors import UnifiedError

SOURCE = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, width: int = 5) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            return self.head(self.body(x))


    def wide():
        return Net(width=9)


    def nothing():
        return 3


    def broken():
        raise ValueError("no licence")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "own_net.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def trained(source: Path, width: int = 5) -> nn.Module:
    """Return a model of the owner's class whose every tensor differs from a fresh one's."""
    model = build_own(f"{source}:Net", {"width": width})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("form", ["pt", "pth", "pt2", "weights.pt", "weights.safetensors"])
def test_a_file_of_the_owners_own_becomes_a_umodel_with_the_same_weights(source, tmp_path, form, capsys):
    model, out = trained(source), tmp_path / "net.umodel"
    path = tmp_path / f"net.{form}"
    options = ["--input", "2,4"]
    if form.startswith("weights"):
        if form.endswith("pt"):
            torch.save(model.state_dict(), path)
        else:
            from safetensors.torch import save_file

            save_file(model.state_dict(), path)
        options += ["--model", f"{source}:Net"]
    elif form == "pt2":
        program = torch.export.export(model.train(), (torch.randn(4, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, path)
        options = []  # the archive has its own example
    else:
        torch.save(model, path)
    assert main(["convert", str(path), str(out), *options]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert same(unified.load_umodel(out), model)


def test_the_first_samples_of_a_dataset_are_example_inputs(source, tmp_path):
    torch.save(trained(source), tmp_path / "net.pt")
    torch.save((torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)), tmp_path / "train.pt")
    out = tmp_path / "net.umodel"
    assert main(["convert", str(tmp_path / "net.pt"), str(out), "--data", str(tmp_path / "train.pt")]) == 0
    assert out.is_file()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".umodel"])
def test_a_result_comes_back_in_the_owners_class_and_in_the_form_asked_for(source, tmp_path, suffix, capsys):
    model = trained(source, width=9)
    archive, out = tmp_path / "model.umodel", tmp_path / f"restored{suffix}"
    unified.export(model, torch.randn(2, 4), archive)
    arguments = ["--arguments", '{"width": 9}'] if suffix == ".pt" else []
    target = f"{source}:{'Net' if arguments else 'wide'}"
    assert main(["restore", str(archive), target, *arguments, "--out", str(out)]) == 0
    assert "all as trained" in capsys.readouterr().out
    inputs = torch.randn(5, 4)
    expected = model.eval()(inputs)
    match suffix:
        case ".pt2":
            found = torch.export.load(out).module()(inputs)
        case ".umodel":
            found = unified.load_umodel(out).eval()(inputs)
        case _:
            restored = torch.load(out, weights_only=False)
            assert type(restored).__name__ == "Net"
            found = restored.eval()(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_finished_jobs_folder_and_result_are_restored(source, tmp_path):
    model = trained(source)
    data = (torch.randn(16, 4), torch.randint(3, (16,)))
    archive = unified.export(model, torch.randn(2, 4), tmp_path / "model.umodel")
    job = unified.JobSpec(
        name="net", model=str(archive), data={"train": data}, loss="CrossEntropyLoss", optimizer="SGD", epochs=1, batch_size=8
    )
    (result,) = unified.train([job], out=tmp_path / "out")
    fresh, again = build_own(f"{source}:Net"), build_own(f"{source}:Net")
    unified.restore(fresh, result)
    unified.restore(again, result.folder)
    assert same(fresh, again)
    assert not same(fresh, model)


def test_weights_that_do_not_fit_are_told_all_at_once_and_nothing_is_copied(source, tmp_path):
    archive = unified.export(trained(source), torch.randn(2, 4), tmp_path / "model.umodel")
    other = nn.Sequential()
    other.body, other.tail = nn.Sequential(nn.Linear(4, 6)), nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UnifiedError) as told:
        unified.restore(other, archive)
    text = str(told.value)
    assert "head.weight: trained, but the class has no such tensor" in text
    assert "tail.weight: of the class, but not in the result" in text
    assert "body.0.weight: expected torch.float32 of (6, 4), as the class has it, got torch.float32 of (5, 4)" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("{source}:Nett", "did you mean 'Net'?"),
        ("{source}:nothing", "made a int"),
        ("{source}", "expected MODEL.py:Class"),
        ("gone.py:Net", "there is no file gone.py"),
        ("no.such.module:Net", "can be imported"),
        ("{source}:broken", "broken of {source} cannot be made: ValueError: no licence"),
        ("{folder}/wrong.py:Net", "{folder}/wrong.py cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_class_that_cannot_be_made_is_told(source, tmp_path, target, says, capsys):
    (tmp_path / "wrong.py").write_text("import no_such_module")
    archive = unified.export(trained(source), torch.randn(2, 4), tmp_path / "model.umodel")
    places = {"source": source, "folder": tmp_path}
    assert main(["restore", str(archive), target.format(**places)]) == 1
    assert says.format(**places) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.pt", "out.umodel", "--input", "2,4"], "no file"),
        (["net.pt", "out.pt2", "--input", "2,4"], "ends in .umodel"),
        (["net.pt", "out.umodel"], "give example inputs"),
        (["net.pt", "out.umodel", "--input", "two"], "expected an input as"),
        (["net.pt", "out.umodel", "--input", "2,4:float99"], "float99"),
        (["net.pt", "out.umodel", "--input", "2,5"], "net.pt"),
        (["text.pt", "out.umodel", "--input", "2,4"], "text.pt"),
        (["weights.pt", "out.umodel", "--input", "2,4"], "holds weights without their model: give its class (--model"),
        (["script.pt", "out.umodel", "--input", "2,4"], "TorchScript cannot be stored in a .umodel"),
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_is_written(source, tmp_path, monkeypatch, arguments, says, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(trained(source), "net.pt")
    torch.save(trained(source).state_dict(), "weights.pt")
    torch.jit.script(nn.Linear(4, 3)).save("script.pt")
    Path("text.pt").write_text("not a model")
    code = main(["convert", *arguments])
    said = capsys.readouterr().err
    assert code == 1
    assert says in said or "Net" in said, said
    assert not list(tmp_path.glob("out*"))


def test_inputs_are_what_their_text_says():
    (image, ids) = of_shapes([parse_shape("2,1,28,28"), parse_shape("2,32:int64")])
    assert (image.shape, image.dtype) == ((2, 1, 28, 28), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 32), torch.int64)
    named = of_shapes([parse_shape("a=2,3"), parse_shape("b=2,4:bool")])
    assert {name: (tuple(t.shape), t.dtype) for name, t in named.items()} == {
        "a": ((2, 3), torch.float32),
        "b": ((2, 4), torch.bool),
    }
    with pytest.raises(UnifiedError, match="a name of its own"):
        of_shapes([parse_shape("a=2,3"), parse_shape("2,4")])
    with pytest.raises(UnifiedError, match="at most"):
        parse_shape("2,99999999999999")
