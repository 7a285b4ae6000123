"""Single networks into one that is cheap for every subset of their tasks (*Pruning-Aware Merging*, section 5.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from fusion.merging.config import RegroupConfig
from fusion.merging.errors import MergeError
from fusion.merging.layers import Network
from fusion.merging.merged import MergedNetwork
from fusion.merging.plan import Regrouping
from fusion.merging.planned import reconnect_plan
from fusion.merging.reading import read_network
from fusion.merging.regroup import trace_networks
from fusion.merging.samples import MergeData, Samples, check_samples, expected_labels
from fusion.merging.training import TrainConfig, Trainer
from fusion.merging.union import Union, unite
from fusion.merging.zipping import zip_networks

Models = Mapping[str, nn.Module]
PAIR_STEPS = 100  #: of training after each layer, at most
NUM_EXAMPLES = 4  #: samples that networks are read with


def read_models(models: Models, data: MergeData, *, private: Collection[str] = ()) -> Union:
    """Read the networks and put them together; see which layers correspond before anything is decided.

    Args:
        models: By task; each takes one tensor and gives one. They are not changed.
        data: With labels of all tasks.
        private: Paths of modules, in any of the networks, that are kept as they are, see
            :func:`~fusion.merging.reading.read_network`.

    Raises:
        MergeError: Everything that is wrong with networks, names and samples.
    """
    problems = _wrong_models(models)
    for samples, what in ((data.train, "training samples"), (data.validation, "validation samples")):
        problems += _wrong_samples(samples, [name for name in models if isinstance(name, str)], what)
    example = data.train.inputs[:NUM_EXAMPLES]
    networks: list[Network] = []
    for name, model in models.items():
        if isinstance(model, nn.Module) and len(example):
            try:
                networks.append(read_network(model, example, name=str(name), private=private))
            except MergeError as error:
                problems.append(str(error))
    if not problems:
        problems = [*_misfits(networks, data), *_unknown_paths(models, networks, private)]
    if problems:
        raise MergeError("\n".join(problems))
    return unite(networks)


def regroup(models: Models | Union, data: MergeData, config: RegroupConfig | None = None) -> Regrouping:
    """Decide for each neuron which tasks it is to serve; nothing is changed, and the plan can be printed.

    Args:
        models: By task, or what :func:`read_models` made of them.
        data: With labels of all tasks.
        config: Options.

    Raises:
        MergeError: Everything that is wrong with networks, samples and options.
    """
    union = models if isinstance(models, Union) else read_models(models, data)
    return trace_networks(union, data, config or RegroupConfig()).regroup()


def merge(  # noqa: PLR0913 - all but two by name
    models: Models,
    data: MergeData,
    *,
    alpha: float | None = None,
    steps: int = 500,
    config: RegroupConfig | None = None,
    train: TrainConfig | None = None,
    private: Collection[str] = (),
    pair: bool = True,
) -> MergedNetwork:
    """Merge single networks into one, and train it.

    Args:
        models: By task; each takes one tensor and gives one. They are not changed.
        data: With labels of all tasks.
        alpha: How much a neuron set may tell about the tasks that it does not serve; the configuration's by default.
        steps: Of training after the merge, with the mean of the tasks' gradients where neurons are shared; 0 for none.
        config: Options of regrouping.
        train: Options of training.
        private: Paths of modules that are kept as they are.
        pair: Whether of the neurons that are to be shared one of each network becomes one, as in zipping, which the paper does
            not do: then the merged network costs no more than the networks alone, whatever tasks are run. Else all of
            them stay, each for all its tasks.

    Returns:
        The merged network in evaluation mode.

    Raises:
        MergeError: Everything that is wrong with networks, samples and options.

    Example:
        ``merged = merge({"A": net_a, "B": net_b}, data, alpha=0.1)``
    """
    config = config or RegroupConfig()
    config = config if alpha is None else replace(config, alpha=alpha)
    if steps < 0:
        raise MergeError(f"steps is a whole number from 0, got {steps}")
    union = read_models(models, data, private=private)
    train = train or TrainConfig()
    plan = regroup(union, data, config)
    if pair:
        merged = zip_networks(union, data, retrain_steps=min(steps, PAIR_STEPS), train=train, plan=plan)
    else:
        merged = reconnect_plan(union, plan)
    Trainer(merged, data.train, train).train(steps)
    return merged


def _wrong_models(models: Models) -> list[str]:
    problems = []
    if len(models) < 2:
        problems.append(f"merging needs at least two networks, got {len(models)}")
    for name, model in models.items():
        if not isinstance(name, str) or not name.strip():
            problems.append(f"a task's name is a text that is not empty, got {name!r}")
        if not isinstance(model, nn.Module):
            problems.append(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    return problems


def _unknown_paths(models: Models, networks: Collection[Network], private: Collection[str]) -> list[str]:
    """Say which of the modules that are to be kept as they are no network has."""
    names = {layer.name for network in networks for layer in network.layers}
    names |= {path for model in models.values() for path, _ in model.named_modules() if path}
    return [
        f"private {path!r}: no network has a module of that path; there are, say: {', '.join(sorted(names)[:8])}"
        for path in private
        if not any(name == path or name.startswith(f"{path}.") for name in names)
    ]


def _misfits(networks: Collection[Network], data: MergeData) -> Iterator[str]:
    """Yield where labels do not fit what a network answers."""
    for network in networks:
        shape = network.layers[network.output].shape
        for samples, what in ((data.train, "training"), (data.validation, "validation")):
            labels = samples.labels[network.name]
            if expected := expected_labels(shape, labels):
                given = f"{labels.dtype} {tuple(labels.shape)}, smallest {labels.min():g}, largest {labels.max():g}"
                yield f"{network.name}: answers {shape} for a sample; expected {what} labels {expected}, got {given}"


def _wrong_samples(samples: Samples, tasks: Collection[str], what: str) -> list[str]:
    try:
        check_samples(samples, tasks, what)
    except MergeError as error:
        return str(error).splitlines()
    return []
