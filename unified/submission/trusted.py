"""Read models whose files run code when they are loaded: only for owners who are trusted. Nothing else here may unpickle."""

from __future__ import annotations

import contextlib
import copy
import pickle
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, fx, nn

from unified.admission import ModelForm
from unified.errors import InvalidSubmission, Problem

_UMODEL_REMEDY = "export it where its class is defined, with unified.export(model, example_inputs, path)"
_MISSING_REMEDY = f"put the folder that has the class in PYTHONPATH, or {_UMODEL_REMEDY}"
_WHOLE_REMEDY = "save the whole module with torch.save(model, path), or export it with unified.export"

#: Arguments of operators that say whether the model is training.
_TRAINING_ARGUMENTS = ("train", "training")


def load_trusted(path: Path | str, form: ModelForm, *, job: str | None = None) -> nn.Module:
    """Load a whole module, running whatever code its file holds. Returns it on the CPU, in training mode.

    Args:
        path: The file.
        form: Pickle of a whole module, ``torch.export`` archive, TorchScript, or an object staged by the Python API.
        job: Whose it is, for messages; the file's name if not given.

    Raises:
        InvalidSubmission: If it cannot be loaded, or is no module.
    """
    path = Path(path)
    with _reporting(path, form, job):
        module = _LOADERS[form](path)
    if not isinstance(module, nn.Module):
        given = f"a {type(module).__name__}" + (", weights without their model" if isinstance(module, Mapping) else "")
        raise InvalidSubmission([_problem(path, job, "a whole nn.Module", given, _WHOLE_REMEDY)])
    return module.train()


def save_trusted(src_path: Path | str, form: ModelForm, state_dict: Mapping[str, Tensor], dst_path: Path | str) -> Path:
    """Write the model at ``src_path`` again, in the form it came in, with the weights of ``state_dict``.

    Args:
        src_path: A file that :func:`load_trusted` loads.
        form: Its form; not ``OBJECT``, which never was a file of the user's.
        state_dict: New parameters and persistent buffers, under the names of the loaded module; on any device.
        dst_path: Where to write.

    Returns:
        ``dst_path``.

    Raises:
        InvalidSubmission: If the source cannot be loaded.
        ValueError: If the form has no file, or the state dict does not fit.
    """
    dst_path = Path(dst_path)
    if form is ModelForm.PT2:
        with _without_warnings():
            program = torch.export.load(src_path)
            _overwrite(program.state_dict, state_dict)
            torch.export.save(program, dst_path)
        return dst_path
    module = load_trusted(src_path, form)
    _overwrite(module.state_dict(), state_dict)
    if form is ModelForm.PICKLE:
        torch.save(module, dst_path)
    elif form is ModelForm.TORCHSCRIPT:
        with _without_warnings():
            torch.jit.save(module, dst_path)
    else:
        raise ValueError(f"a model of form {form.value!r} has no file to be written again")
    return dst_path


def example_of_pt2(path: Path) -> tuple[Any, ...] | dict[str, Any] | None:
    """Return the inputs that a ``torch.export`` archive was exported with, if it has them; runs code, as loading it does."""
    with _without_warnings():
        found = torch.export.load(path).example_inputs
    if found is None:
        return None
    args, kwargs = found
    return dict(kwargs) if kwargs and not args else tuple(args)


def _load_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _load_object(path: Path) -> Any:
    with path.open("rb") as file:
        return cloudpickle.load(file)


def _load_torchscript(path: Path) -> Any:
    with _without_warnings():
        return torch.jit.load(path, map_location="cpu")


def _load_pt2(path: Path) -> Any:
    """Load an exported program as a module that ``train()`` and ``eval()`` switch, which PyTorch's own refuses to do.

    Its graph is that of one mode. The other is made of it: dropout and batch normalisation are told otherwise, and batches are
    not counted in evaluation. Anything else that the model does in one mode only is lost in its export.
    """
    with _without_warnings():
        module = torch.export.load(path).module()
        if isinstance(module, fx.GraphModule):
            _Modes(module).install()
    return module


class _Modes:
    """The graphs of an exported module for training and evaluation."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._graphs = {training: _in_mode(module.graph, training=training) for training in (True, False)}

    def install(self) -> None:
        def train(module: fx.GraphModule, mode: bool = True) -> fx.GraphModule:
            if module.graph is not self._graphs[mode]:
                with _without_warnings():
                    module.graph = self._graphs[mode]
            for child in module.modules():
                child.training = mode
            return module

        def evaluate(module: fx.GraphModule) -> fx.GraphModule:
            return module.train(False)

        # PyTorch hangs methods that raise on the instance; these take their place
        self._module.train = types.MethodType(train, self._module)
        self._module.eval = types.MethodType(evaluate, self._module)


def _in_mode(graph: fx.Graph, *, training: bool) -> fx.Graph:
    """Return a copy of ``graph`` for training or evaluation."""
    changed = copy.deepcopy(graph)
    for node in list(changed.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if _counts_batches(node):
            if not training:
                changed.erase_node(node)
            continue
        for position, argument in enumerate(node.target._schema.arguments):
            if argument.name in _TRAINING_ARGUMENTS and position < len(node.args):
                node.update_arg(position, training)
            elif argument.name == "dropout_p" and not training:
                _drop_nothing(node, position)
    return changed


def _counts_batches(node: fx.Node) -> bool:
    target = node.args[0] if node.target is torch.ops.aten.add_.Tensor and not node.users else None
    return isinstance(target, fx.Node) and str(target.target).endswith("num_batches_tracked")


def _drop_nothing(node: fx.Node, position: int) -> None:
    """Set the dropout of attention to zero."""
    if "dropout_p" in node.kwargs:
        node.update_kwarg("dropout_p", 0.0)
    elif position < len(node.args):
        node.update_arg(position, 0.0)


_LOADERS = {
    ModelForm.PICKLE: _load_pickle,
    ModelForm.PT2: _load_pt2,
    ModelForm.TORCHSCRIPT: _load_torchscript,
    ModelForm.OBJECT: _load_object,
}


def _overwrite(own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Copy ``new`` into the tensors of ``own``."""
    if own.keys() != new.keys():
        raise ValueError(f"the state dict has other names than the model: {sorted(own.keys() ^ new.keys())[:5]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != new[name].shape:
                raise ValueError(f"{name!r}: expected shape {tuple(tensor.shape)}, got {tuple(new[name].shape)}")
            tensor.copy_(new[name])


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence PyTorch's advice on TorchScript, which is for the author of the model, and its notes on its own inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _reporting(path: Path, form: ModelForm, job: str | None) -> Iterator[None]:
    expected = f"a {form.value} file that can be loaded here"
    try:
        yield
    except (ImportError, AttributeError) as error:  # unpickling names a class or module that is not there
        given = f"one that needs what is missing here: {error}"
        raise InvalidSubmission([_problem(path, job, expected, given, _MISSING_REMEDY)]) from error
    except PermissionError as error:
        given = f"one that opens {error.filename}, which this process may not"
        remedy = "install its module where the service runs; docs/queue.md says what the operating-system ring lets it open"
        raise InvalidSubmission([_problem(path, job, expected, given, remedy)]) from error
    except (pickle.UnpicklingError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        given = f"{type(error).__name__}: {str(error)[:300]}"
        raise InvalidSubmission([_problem(path, job, expected, given, "write the file again")]) from error
    except Exception as error:
        # code of the owner's ran, and may raise anything
        given = f"an error of its own: {type(error).__name__}: {str(error)[:300]}"
        raise InvalidSubmission([_problem(path, job, expected, given, _UMODEL_REMEDY)]) from error


def _problem(path: Path, job: str | None, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code="E-TRUSTED", job=job or path.stem, field=path.name, expected=expected, given=given, remedy=remedy)
