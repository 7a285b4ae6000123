"""A list of layers in JSON as an ``nn.Sequential``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from unified.job_problems import describe, did_you_mean
from unified.submission.layer_table import LAYERS, MAX_LAYERS, REFUSED, Layer, fits
from unified.submission.refusal import MAX_FAULTS, Fault, RefusedModelError

MAX_LISTED = 10_000
MAX_DEPTH = 6  #: of lists; the values of a job may nest no deeper

_LISTED = {name: layer for name, layer in LAYERS.items() if layer.is_listed}

Recipe = list["tuple[type[nn.Module], dict[str, Any]] | Recipe"]


def layer_list(layers: Sequence[Any]) -> Callable[[], nn.Module]:
    """Return what builds the layers; a list within becomes an ``nn.Sequential`` of its own.

    Raises:
        RefusedModelError: With every layer that there is not, and every argument that is missing, unknown or of a wrong kind.

    Example:
        >>> layer_list([{"name": "Linear", "in_features": 2, "out_features": 3}, {"name": "ReLU"}])()
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): ReLU()
        )
    """
    reader = _Reader()
    recipe = reader.read(layers, "architecture.layers", 0)
    if reader.faults:
        raise RefusedModelError(reader.faults[:MAX_FAULTS])
    return lambda: _build(recipe)


def _build(recipe: Recipe) -> nn.Module:
    return nn.Sequential(*(_build(each) if isinstance(each, list) else each[0](**each[1]) for each in recipe))


class _Reader:
    """Collects what is wrong on the way."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._count = 0

    def read(self, layers: Sequence[Any], field: str, depth: int) -> Recipe:
        self._count += len(layers)
        if not layers or depth > MAX_DEPTH or self._count > MAX_LISTED:
            expected = f"1 to {MAX_LISTED} layers, at most {MAX_DEPTH} lists deep"
            given = "none" if not layers else "more"
            self._note(field, expected, given, "correct it")
            return []
        recipe: Recipe = []
        for index, record in enumerate(layers):
            place = f"{field}[{index}]"
            if isinstance(record, list):
                recipe.append(self.read(record, place, depth + 1))
            else:
                layer = self._layer(record, place)
                if layer is not None:
                    recipe.append((layer.kind, self._arguments(layer, record, place)))
        return recipe

    def _layer(self, record: Any, place: str) -> Layer | None:
        name = record.get("name") if isinstance(record, dict) else None
        if not isinstance(name, str):
            self._note(place, 'an object with the "name" of a layer', describe(record), 'write e.g. {"name": "ReLU"}')
            return None
        if name not in _LISTED:
            otherwise = (
                "see torch.nn" if name not in LAYERS else "it is made of other modules: nest lists, or use unified.export"
            )
            remedy = REFUSED.get(name) or did_you_mean(name, _LISTED, otherwise)
            self._note(f"{place}.name", "a layer of torch.nn that a list can name", describe(name), remedy)
        return _LISTED.get(name)

    def _arguments(self, layer: Layer, record: dict[str, Any], place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in record.items():
            if name == "name":
                continue
            kinds, value = layer.arguments.get(name), _as_tuple(value)
            if kinds is None:
                remedy = did_you_mean(name, layer.arguments, f"known are {', '.join(layer.arguments) or 'none'}")
                self._note(f"{place}.{name[:80]}", f"an argument of {layer.kind.__name__}", describe(value), remedy)
            elif not fits(value, kinds) or (name == "num_layers" and not 0 < value <= MAX_LAYERS):
                self._note(f"{place}.{name}", kinds, describe(value), f"see torch.nn.{layer.kind.__name__}")
            else:
                found[name] = value
        for name in layer.required:
            if name not in record:
                self._note(f"{place}.{name}", "a value", "nothing", f"torch.nn.{layer.kind.__name__} needs it")
        return found

    def _note(self, field: str, expected: str, given: str, remedy: str) -> None:
        self.faults.append(Fault(code="E-DECLARED", where=field, expected=expected, given=given, remedy=remedy))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
