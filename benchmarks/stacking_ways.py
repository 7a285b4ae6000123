"""The ways to train, or to ask, N models of one architecture: one after another, as one stack, and by ``torch.func.vmap``."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.stacking_models import Population, loss_of
from fusion.stacking.choices import Choices
from fusion.stacking.stack import Stack, stack
from fusion.stacking.training import StackedTraining
from fusion.stacking.width_search import WidthSearch

MOMENTUM = 0.9
MIN_GAIN = 1.1  #: what a stack must be faster by, or the models go on side by side


@dataclass(slots=True, kw_only=True)
class Way:
    """One way: ``step`` does it once for all models; ``result`` gives ``(models, ...)`` to compare.

    Attributes:
        note: What was chosen by measuring, in words.
        seconds: Measured seconds by what was tried.
    """

    step: Callable[[], object]
    result: Callable[[], Tensor]
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def training_loop(people: Population) -> Way:
    """One model after another, each with its own optimizer, ``fused=True``."""
    models = copy.deepcopy(people.models)
    optimizers = Population(models=models, inputs=people.inputs, targets=people.targets).optimizers()

    def step() -> None:
        for model, optimizer, inputs, targets in zip(models, optimizers, people.inputs, people.targets, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss_of(model, inputs, targets).backward()
            optimizer.step()

    return Way(step=step, result=lambda: _weights(models))


def training_stack(people: Population, *, width: int | None = None) -> Way:
    """As stacks of the width that was measured best, or of ``width``."""
    models = copy.deepcopy(people.models)
    optimizers = Population(models=models, inputs=people.inputs, targets=people.targets).optimizers(fused=False)
    training = StackedTraining(models, optimizers, choices=Choices(), width=width)
    everybody = list(range(len(models)))

    def batches(rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = slice(None) if rows == everybody else slice(rows[0], rows[-1] + 1)
        return Stack.wrap(people.inputs[chosen]), Stack.wrap(people.targets[chosen])

    def step() -> None:
        training.step(batches, loss_of)  # type: ignore[arg-type]  # rows are always a list

    def result() -> Tensor:
        training.settle_all()
        return _weights(models)

    seconds = {} if width else training.tune(step)
    note = f"{training.width} at a time"
    return Way(step=step, result=result, note=note, seconds={str(tried): value for tried, value in seconds.items()})


def training_vmap(people: Population) -> Way:
    """Plain ``torch.func.vmap`` over the models, momentum by ``torch._foreach`` on the stacked parameters."""
    models = copy.deepcopy(people.models)
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta").train()
    rates = torch.tensor([0.01 * (1 + index / 100) for index in range(len(models))])
    momenta = [torch.zeros_like(value) for value in parameters.values()]

    def loss(own: dict[str, Tensor], state: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_of(_called(skeleton, (own, state)), inputs, targets)

    gradients = vmap(grad_and_value(loss), randomness="different")

    def step() -> None:
        found, _ = gradients(parameters, buffers, people.inputs, people.targets)
        with torch.no_grad():
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, list(found.values()))
            for value, momentum in zip(parameters.values(), momenta, strict=True):
                value.sub_(momentum * rates.view(-1, *[1] * (value.dim() - 1)))

    return Way(step=_with_math(step), result=lambda: _flat([value.detach() for value in parameters.values()]))


def asking_loop(people: Population) -> Way:
    """One model after another."""
    models = [model.eval() for model in copy.deepcopy(people.models)]

    @torch.inference_mode()
    def step() -> Tensor:
        return torch.stack([model(inputs) for model, inputs in zip(models, people.inputs, strict=True)])

    return Way(step=step, result=step)


def asking_stack(people: Population) -> Way:
    """As stacks of the width that was measured best."""
    models = [model.eval() for model in copy.deepcopy(people.models)]
    choices, search = Choices(), WidthSearch(len(models))
    steps: dict[int, Callable[[], Tensor]] = {}
    while not search.is_over:
        if search.width not in steps:
            steps[search.width] = _asking(models, people.inputs, search.width, choices)
        search.note(_seconds(steps[search.width]))
    step = steps.get(search.width) or _asking(models, people.inputs, search.width, choices)
    tried = {str(width): seconds for width, seconds in search.seconds.items()}
    return Way(step=step, result=step, note=f"{search.width} at a time", seconds=tried)


def asking_vmap(people: Population) -> Way:
    """Plain ``torch.func.vmap`` over the models."""
    models = [model.eval() for model in copy.deepcopy(people.models)]
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    answer = vmap(lambda own, state, inputs: functional_call(skeleton, (own, state), (inputs,)))

    @torch.no_grad()
    def step() -> Tensor:
        return answer(parameters, buffers, people.inputs)

    made = _with_math(step)
    return Way(step=made, result=made)


WAYS: dict[str, dict[str, Callable[[Population], Way]]] = {
    "training": {"loop": training_loop, "stack": training_stack, "vmap": training_vmap},
    "inference": {"loop": asking_loop, "stack": asking_stack, "vmap": asking_vmap},
}


def _asking(models: list[nn.Module], inputs: Tensor, width: int, choices: Choices) -> Callable[[], Tensor]:
    starts = range(0, len(models), width)
    stacks = [stack(models[start : start + width], choices=choices) for start in starts]
    parts = [Stack.wrap(inputs[start : start + width]) for start in starts]

    @torch.inference_mode()
    def step() -> Tensor:
        return torch.cat([each(part) for each, part in zip(stacks, parts, strict=True)])

    return step


def _called(skeleton: nn.Module, state: tuple[dict[str, Tensor], ...]) -> Callable[[Tensor], Tensor]:
    return lambda inputs: functional_call(skeleton, state, (inputs,))


def _with_math(step: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
    """Let attention take the one kernel that vmap knows on a CPU."""

    def wrapped() -> Tensor | None:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()

    return wrapped


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _weights(models: list[nn.Module]) -> Tensor:
    return torch.stack([torch.cat([value.detach().flatten() for value in model.parameters()]) for model in models])


def _flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in values], dim=1)
