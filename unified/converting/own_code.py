"""Models made by their owner's own code: ``MODEL.py:Class`` or ``package.module:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from unified.errors import UnifiedError
from unified.job_problems import did_you_mean


def build_own(target: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Import the owner's code and return the model it makes.

    Args:
        target: ``"MODEL.py:Class"`` or ``"package.module:Class"``; in place of a class also a function that returns a module.
        arguments: What it is called with.

    Raises:
        UnifiedError: If there is no such file, module or class, or it does not make a module.
    """
    where, _, name = target.rpartition(":")
    if not where or not name.isidentifier():
        raise UnifiedError(f"expected MODEL.py:Class or package.module:Class, got {target!r}")
    maker = _member(_import(where), name, where)
    try:
        model = maker(**(arguments or {}))
    except TypeError as error:
        raise UnifiedError(
            f"{name} of {where} cannot be made: {error}; give its arguments with --arguments, as JSON"
        ) from error
    except Exception as error:  # the owner's code, which may raise anything
        raise UnifiedError(f"{name} of {where} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UnifiedError(f"{name} of {where} made a {type(model).__name__}, expected an nn.Module")
    return model


@contextmanager
def importable_from(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported meanwhile, as they can where the owner's script lies."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _import(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix != ".py":
        with importable_from(Path.cwd()):
            try:
                return importlib.import_module(where)
            except ModuleNotFoundError as error:
                raise UnifiedError(f"no module {where!r} can be imported: {error}; give a file, MODEL.py:Class") from error
    if not path.is_file():
        raise UnifiedError(f"there is no file {where}; give the file in which your model's class stands")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # under the name by which a pickle of its classes would look for it
    with importable_from(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the owner's code, which may raise anything
            raise UnifiedError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _member(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        makers = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        hint = did_you_mean(name, makers, f"it has {', '.join(makers) or 'no class of a module'}")
        raise UnifiedError(f"{where} has no class or function {name!r}; {hint}")
    return found
