"""What a pickled model would import is known without unpickling it; where it cannot be known, the file is refused."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integration.batches import TRAIN, Conv, Recurrent, perceptron
from tests.integration.own_models import Tracked
from unified.admission import ModelForm
from unified.queue.pickled_names import UndeterminedError, foreign_names
from unified.submission.models import recognise

OWN = "tests.integration.own_models"


def saved(path: Path, content: object, **how: object) -> Path:
    torch.save(content, path, **how)  # pyrefly: ignore[bad-argument-type]
    return path


def archive(path: Path, **entries: bytes) -> Path:
    """Write an archive as torch.save does, with these pickles."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(zipfile.ZipInfo(f"model/{name}.pkl"), content)
    return path


MADE: dict[str, Callable[[], object]] = {
    "perceptron": perceptron,
    "weights": lambda: perceptron().state_dict(),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 8, activation="gelu"), 1, enable_nested_tensor=False
    ),
    "kinds": lambda: nn.ParameterList(
        [torch.zeros(2, dtype=kind) for kind in (torch.float64, torch.bfloat16, torch.complex64)]
    ),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Embedding(3, 4)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("made", MADE)
def test_pytorchs_own_modules_need_nobodys_leave(tmp_path: Path, made: str, protocol: int) -> None:
    assert foreign_names(saved(tmp_path / "model.pt", MADE[made](), pickle_protocol=protocol), ()) == []


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_class_of_ones_own_is_named_unless_its_module_is_listed(tmp_path: Path, protocol: int) -> None:
    path = saved(tmp_path / "model.pt", nn.Sequential(Tracked(), Conv(), Recurrent()), pickle_protocol=protocol)
    theirs = ["tests.integration.batches.Conv", "tests.integration.batches.Recurrent"]
    assert foreign_names(path, ()) == [*theirs, f"{OWN}.Tracked"]
    assert foreign_names(path, (OWN,)) == theirs
    assert foreign_names(path, ("tests.integration",)) == foreign_names(path, ("tests",)) == []
    assert foreign_names(path, ("tests.integration.own", "tests.integration.batches.Conv")) == [*theirs, f"{OWN}.Tracked"]


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def by_stack(module: str, name: str) -> bytes:
    return b"\x80\x04" + short(module) + short(name) + b"\x93)R."


#: Pickles that call something, and what they are told to import.
CALLS = {
    "by name": (b"\x80\x02cos\nsystem\n)R.", "os.system"),
    "from the stack": (by_stack("posix", "system"), "posix.system"),
    "from the memo": (b"\x80\x04" + short("os") + b"\x94" + short("system") + b"\x9400h\x00h\x01\x93)R.", "os.system"),
    "as an instance": (b"(ios\nsystem\n.", "os.system"),
    "through a module of ours": (by_stack(OWN, "os.system"), f"{OWN}.os.system"),
    "through a module of PyTorch": (
        by_stack("torch.nn.modules.linear", "torch.os.system"),
        "torch.nn.modules.linear.torch.os.system",
    ),
    "by a word of PyTorch": (by_stack("torch._utils", "_import_dotted_name"), "torch._utils._import_dotted_name"),
    "a pickle in a pickle": (by_stack("torch.storage", "_load_from_bytes"), "torch.storage._load_from_bytes"),
    "torch.load": (by_stack("torch", "load"), "torch.load"),
    "torch.hub": (by_stack("torch.hub", "load"), "torch.hub.load"),
    "eval": (by_stack("builtins", "eval"), "builtins.eval"),
    "getattr": (b"\x80\x02c__builtin__\ngetattr\n)R.", "__builtin__.getattr"),
    "a module like a listed one": (by_stack(f"{OWN}x", "Tracked"), f"{OWN}x.Tracked"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("entry", ["data", "constants2", "DATA"])
def test_whatever_else_a_pickle_calls_is_told(tmp_path: Path, call: str, entry: str) -> None:
    content, name = CALLS[call]
    assert foreign_names(archive(tmp_path / "model.pt", **{entry: content}), (OWN,)) == [name]


UNKNOWN = {
    "a computed name": b"\x80\x04" + short("o") + short("s") + b"\x86" + short("system") + b"\x93)R.",
    "names swapped by a pop": b"\x80\x04" + short("os") + short("system") + short("x") + b"0\x93)R.",
    "a name from a changed memo": b"\x80\x04" + short("torch") + b"q\x00" + b"Nq\x000" + b"h\x00" + short("Size") + b"\x93)R.",
    "an extension": b"\x80\x02\x82\x01)R.",
    "a name with blanks": b"\x80\x02cos x\nsystem\n)R.",
    "no end": b"\x80\x02cos\nsystem",
    "no pickle": b"what is this",
    "nothing": b"",
}


@pytest.mark.parametrize("how", UNKNOWN)
def test_a_pickle_that_cannot_be_understood_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(UndeterminedError):
        foreign_names(archive(tmp_path / "model.pt", data=UNKNOWN[how]), (OWN,))


def test_archives_that_readers_may_see_differently_are_refused(tmp_path: Path) -> None:
    good = archive(tmp_path / "good.pt", data=pickle.dumps({}, 2)).read_bytes()
    entries = io.BytesIO(good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there already
        with zipfile.ZipFile(entries, "a") as file:
            file.writestr(zipfile.ZipInfo("model/data.pkl"), pickle.dumps({}, 2))
    remarked = io.BytesIO(good)
    with zipfile.ZipFile(remarked, "a") as file:
        file.comment = b"PK\x05\x06"
    other_case = archive(tmp_path / "case.pt", data=pickle.dumps({}, 2), DATA=pickle.dumps({}, 2)).read_bytes()
    before = CALLS["by name"][0] + good  # which torch.load takes for the old form
    for content in (entries.getvalue(), remarked.getvalue(), other_case, before, b"x" + good):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(UndeterminedError):
            foreign_names(tmp_path / "model.pt", ())
    assert foreign_names(tmp_path / "good.pt", ()) == []


def test_the_old_form_is_refused_and_other_files_have_no_names(tmp_path: Path) -> None:
    old = saved(tmp_path / "old.pt", perceptron(), _use_new_zipfile_serialization=False)
    with pytest.raises(UndeterminedError, match=r"before 1\.6"):
        foreign_names(old, ())
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert foreign_names(tmp_path / "model.safetensors", ()) == []


def test_what_is_not_looked_through_is_what_is_not_loaded_as_a_pickle(tmp_path: Path) -> None:
    code = CALLS["by name"][0]
    for number, entries in enumerate(
        [{"data": code}, {"data": code, "constants": code}, {"data": code, "archive_format": b""}]
    ):
        for suffix in (".pt", ".pth", ".pt2", ".bin"):
            path = archive(tmp_path / f"{number}{suffix}", **entries)
            if "archive_format" in entries:
                with zipfile.ZipFile(path, "a") as file:
                    file.writestr("model/archive_format", "pt2")
            is_named = foreign_names(path, ()) != []
            assert is_named is (recognise(path, job="j", trust=True, staged=False).form is ModelForm.PICKLE), path


def test_a_scripted_and_an_exported_model_have_no_names(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(perceptron()).save(tmp_path / "scripted.pt")
        torch.export.save(torch.export.export(perceptron(), (TRAIN[0][:4],)), tmp_path / "exported.pt2")
    for name, form in {"scripted.pt": ModelForm.TORCHSCRIPT, "exported.pt2": ModelForm.PT2}.items():
        assert foreign_names(tmp_path / name, ()) == []
        assert recognise(tmp_path / name, job="j", trust=True, staged=False).form is form
