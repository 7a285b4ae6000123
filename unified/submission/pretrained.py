"""A folder as ``save_pretrained`` writes it: ``config.json`` and safetensors. Its class is one of ``transformers``' own.

Nothing of it is run: what would fetch code, kernels or weights from elsewhere is refused, and the network is left alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unified.errors import InvalidSubmission
from unified.job_problems import describe, did_you_mean
from unified.strict_json import read_json
from unified.submission.guarded_build import build_on_meta, check_hidden, own_random_state
from unified.submission.refusal import MAX_FAULTS, Fault, RefusedModelError, refused
from unified.submission.stored_tensors import check_finite
from unified.submission.weight_files import Weight, safetensors_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"

_MAX_SHARDS = 1000
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_KEY = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
_DTYPES = (None, "float64", "float32", "float16", "bfloat16")
_SAVED = "write it with model.save_pretrained(folder)"

#: Keys that would run code or fetch something, with the values that do no harm.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "auto_map": (None,),
    "attribute_map": (None,),  # gives keys other names
    "quantization_config": (None,),
    "compression_config": (None,),
    "custom_generate": (None,),
    "kernel_config": (None,),
    "transformers_weights": (None,),
    "fusion_config": (None,),
    "distributed_config": (None,),
    "use_kernels": (None, False),
    "trust_remote_code": (None, False),
    "use_pretrained_backbone": (None, False),
    "use_timm_backbone": (None, False),
    "backbone": (None,),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), (None, "eager", "sdpa")),
    **dict.fromkeys(("_attn_implementation_internal", "_attn_implementation_autoset"), (None,)),
    **dict.fromkeys(("experts_implementation", "_experts_implementation"), (None, "eager")),
    **dict.fromkeys(("dtype", "torch_dtype"), _DTYPES),
}
#: Parts of names of keys that say how many there are of something, and the most that there may be: some configurations make
#: lists of that length.
_COUNTS = ("num_", "layer", "depth")
_MAX_COUNT = 1 << 20
_MAX_NUMBER = 1 << 31
_MAX_CONFIGS_DEPTH = 8
#: Kinds of models that are made by another library, from a name that may lead anywhere.
_WRAPPERS = frozenset({"timm_wrapper", "timm_backbone"})


def folder_files(folder: Path, *, follow: bool) -> list[Path]:
    """Return the files of a folder that are read: its configuration, its index if there is one, and its weights.

    Args:
        folder: The folder.
        follow: Take files that are links to elsewhere.

    Raises:
        RefusedModelError: If there is no such folder, or a file of it is a link out of it.
    """
    if not (folder / CONFIG).is_file():
        raise _bad("E-FORM", folder.name, f"a model's file, or a folder with {CONFIG} and {WEIGHTS}", f"no {CONFIG}", _SAVED)
    if (folder / WEIGHTS).is_file():
        files = [folder / CONFIG, folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        shards = sorted(set(_weight_map(folder).values()))
        files = [folder / CONFIG, folder / INDEX, *(folder / shard for shard in shards)]
    else:
        pickled = (folder / PICKLED).exists()
        given = f"{PICKLED}, which is a pickle" if pickled else f"no {WEIGHTS}"
        raise _bad("E-FORM", folder.name, f"a folder with {CONFIG} and {WEIGHTS}", given, _SAVED)
    home = folder.resolve()
    for file in files:
        if not file.is_file():
            raise _bad("E-FILE", f"{folder.name}/{file.name}", "a file", "nothing", _SAVED)
        if not follow and not file.resolve().is_relative_to(home):
            remedy = "put the files themselves there, e.g. with cp -L"
            raise _bad("E-LINK", f"{folder.name}/{file.name}", "a plain file", "a link out of the folder", remedy)
    return files


def folder_hash(files: Iterable[Path]) -> str:
    """Return a SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def load_pretrained(folder: Path, name: str | None, *, finite: bool = True) -> nn.Module:
    """Return the model of a folder, in training mode, on the CPU.

    Args:
        folder: The folder.
        name: Its class; None: the one that the configuration names.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        RefusedModelError: If anything is wrong with it.
        MalformedError: If a file of weights is damaged.
        OSError: If a file cannot be read.
    """
    config = _read_object(folder / CONFIG)
    faults = list(_config_faults(config, CONFIG))
    if faults:
        raise RefusedModelError(faults[:MAX_FAULTS])
    weights = _weights(folder)
    with _offline(), own_random_state():
        kind, configuration = _class(config, name)
        bare = build_on_meta(lambda: kind._from_config(copy.deepcopy(configuration)), len(weights))
        _check_size(bare, weights)
        check_hidden(bare, weights)
        tensors = {key: weight.read() for key, weight in weights.items()}
        if finite:
            for key, tensor in tensors.items():
                check_finite(key, tensor)
        return _filled(kind, configuration, tensors).train()


def _check_size(bare: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Refuse a configuration of more parameters than are stored, before anything is allocated."""
    needed = sum(parameter.numel() for parameter in bare.parameters())
    stored = sum(weight.numel for weight in weights.values())
    if needed > stored:
        given = f"weights of {stored} numbers"
        remedy = "correct the configuration, or name the class that was saved in architecture"
        raise _bad("E-DECLARED", CONFIG, f"weights of a {type(bare).__name__}, which has {needed} parameters", given, remedy)


def _filled(kind: Any, configuration: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the model with its weights; transformers knows what those of earlier versions are called now."""
    try:
        model, found = kind.from_pretrained(
            None,
            config=configuration,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # its loader raises errors of any kind
        given = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _bad("E-DECLARED", WEIGHTS, f"weights that fit a {kind.__name__}", given, _SAVED) from error
    faults = []
    for what, names in (("missing", "missing_keys"), ("unknown", "unexpected_keys"), ("of another shape", "mismatched_keys")):
        for name in sorted(map(str, found[names]))[:MAX_FAULTS]:
            expected = f"the weights of a {kind.__name__}, all of them and no others"
            faults.append(_fault("E-DECLARED", WEIGHTS, expected, f"{name[:150]} {what}", "name the class that was saved"))
    if faults or found["error_msgs"]:
        raise RefusedModelError(faults or [_fault("E-DECLARED", WEIGHTS, "weights that fit", str(found)[:200], _SAVED)])
    return model


def _weights(folder: Path) -> dict[str, Weight]:
    if (folder / WEIGHTS).is_file():
        return safetensors_weights(folder / WEIGHTS)
    places = _weight_map(folder)
    found: dict[str, Weight] = {}
    for shard in sorted(set(places.values())):
        stored = safetensors_weights(folder / shard)
        expected = {name for name, place in places.items() if place == shard}
        if stored.keys() != expected:
            names = sorted(stored.keys() ^ expected)[:5]
            raise _bad(
                "E-TENSORS", f"{folder.name}/{shard}", f"the tensors that {INDEX} lists", f"differences: {names}", _SAVED
            )
        found |= stored
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    """Return from the index in which file each tensor lies."""
    places = _read_object(folder / INDEX).get("weight_map")
    plain = isinstance(places, dict) and all(isinstance(file, str) and _SHARD.fullmatch(file) for file in places.values())
    if not plain or not places or len(set(places.values())) > _MAX_SHARDS:
        expected = "a weight_map from tensors to .safetensors files beside it"
        raise _bad("E-TENSORS", f"{folder.name}/{INDEX}", expected, describe(places), _SAVED)
    return places


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, job="")
    except InvalidSubmission as error:
        raise RefusedModelError(
            Fault(code=each.code, where=each.field, expected=each.expected, given=each.given, remedy=each.remedy)
            for each in error.problems
        ) from error
    if not isinstance(value, dict):
        raise _bad("E-JSON", path.name, "an object", describe(value), _SAVED)
    return value


def _config_faults(value: Any, field: str) -> Iterator[Fault]:
    """Yield what in a configuration, or in one within it, would run code or fetch something."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _config_faults(item, f"{field}[{index}]")
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        place = f"{field}.{key[:80]}"
        harmless = _HARMLESS.get(key)
        if harmless is not None and item not in harmless:
            allowed = " or ".join(describe(each) for each in harmless)
            yield _fault("E-DECLARED", place, allowed, describe(item), "remove it: only what transformers itself has is run")
        elif type(item) is int and abs(item) > (limit := _MAX_COUNT if any(c in key for c in _COUNTS) else _MAX_NUMBER):
            yield _fault("E-DECLARED", place, f"a number up to {limit}", describe(item), "correct it")
        elif key.startswith("__"):
            yield _fault("E-DECLARED", place, "an ordinary key", describe(key), "remove it")
        elif key == "model_type" and isinstance(item, str) and item in _WRAPPERS:
            yield _fault("E-DECLARED", place, "a model of transformers", describe(item), 'use {"library": "timm", "name": …}')
        else:
            yield from _config_faults(item, place)


def _class(config: Mapping[str, Any], name: str | None) -> tuple[Any, Any]:
    """Return the class of the model, and its configuration."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    kind_name = config.get("model_type")
    if not isinstance(kind_name, str) or kind_name not in CONFIG_MAPPING_NAMES:
        remedy = did_you_mean(str(kind_name), CONFIG_MAPPING_NAMES, "it needs code of its own: use unified.export")
        raise _bad("E-DECLARED", f"{CONFIG}.model_type", "a kind of model of transformers", describe(kind_name), remedy)
    named = config.get("architectures")
    wanted = name if name is not None else (named[0] if isinstance(named, list) and named else None)
    field = "architecture.name" if name is not None else f"{CONFIG}.architectures"
    kind = getattr(transformers, wanted, None) if isinstance(wanted, str) and wanted.isidentifier() else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model or not kind.__module__.startswith("transformers.models."):
        raise _bad("E-DECLARED", field, "a model class of transformers", describe(wanted), _named_remedy(wanted))
    configuration = _configuration(CONFIG_MAPPING[kind_name], config)
    if kind.config_class is None or not isinstance(configuration, kind.config_class):
        raise _bad("E-DECLARED", field, f"a class for {kind_name!r}", describe(wanted), "correct it")
    faults = list(_config_faults(_made(configuration), CONFIG))
    if faults:
        raise RefusedModelError(faults[:MAX_FAULTS])
    return kind, configuration


def _made(configuration: Any, depth: int = 0) -> dict[str, Any]:
    """Return what a configuration came to: what a file says may be renamed, and what it leaves out has a default."""
    from transformers import PretrainedConfig, TimmWrapperConfig

    found: dict[str, Any] = {}
    for key, value in vars(configuration).items():
        if isinstance(value, PretrainedConfig) and depth < _MAX_CONFIGS_DEPTH:
            found[key] = _made(value, depth + 1)
        elif isinstance(value, str | None):
            found[key] = value
    # some kinds are made by another library under a name of their own
    return found | {"model_type": "timm_wrapper" if isinstance(configuration, TimmWrapperConfig) else configuration.model_type}


def _configuration(kind: Any, config: Mapping[str, Any]) -> Any:
    plain = {key: value for key, value in config.items() if _KEY.fullmatch(key)}
    try:
        return kind.from_dict(plain)
    except Exception as error:  # configurations check themselves, with errors of any kind
        given = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _bad("E-DECLARED", CONFIG, f"a configuration that {kind.__name__} takes", given, "correct it") from error


def _named_remedy(wanted: Any) -> str:
    if wanted is None:
        return 'name it: "architecture": {"library": "transformers", "name": "BertForSequenceClassification"}, say'
    return "use a class such as BertForSequenceClassification, or unified.export for one of your own"


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers off the network, and its notes off the terminal."""
    import huggingface_hub.constants as hub
    from transformers.utils import logging as notes

    before, level, shows_bars = hub.HF_HUB_OFFLINE, logging.root.manager.disable, notes.is_progress_bar_enabled()
    hub.HF_HUB_OFFLINE = True
    logging.disable(logging.WARNING)
    notes.disable_progress_bar()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
        logging.disable(level)
        if shows_bars:
            notes.enable_progress_bar()


def _fault(code: str, field: str, expected: str, given: str, remedy: str) -> Fault:
    return Fault(code=code, where=field, expected=expected, given=given, remedy=remedy)


def _bad(code: str, field: str, expected: str, given: str, remedy: str) -> RefusedModelError:
    return refused(code, field, expected, given, remedy)
