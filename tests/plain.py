"""The reference of the contract: one model trained alone by the loop that anyone would write in plain PyTorch.

It uses nothing of ours: ``DataLoader``, ``torch.optim`` and ``torch.autocast`` (see ``docs/architecture.md``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Inputs = Tensor | dict[str, Tensor]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_alone(
    model: nn.Module, job: Mapping[str, Any], train: tuple[Inputs, Tensor], test: tuple[Inputs, Tensor] | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train a copy of ``model`` alone and return its state dict and, per epoch, train loss, test loss and accuracy."""
    model = copy.deepcopy(model)
    names, tensors = _flat(train[0])
    dataset = TensorDataset(*tensors, train[1])
    loss_fn = _component(nn, job["loss"])
    optimizer = _component(torch.optim, job["optimizer"], model.parameters())
    schedule, every = _schedule(job.get("lr_scheduler"), optimizer)
    clip, precision = job.get("clip_grad_norm"), job.get("precision", "fp32")
    device = train[1].device.type
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    rows: list[dict[str, float]] = []

    def autocast() -> Any:
        return nullcontext() if precision == "fp32" else torch.autocast(device, dtype=AUTOCAST[precision])

    seed = job.get("seed", 0)
    torch.manual_seed(seed)
    loader = DataLoader(
        dataset,
        batch_size=job["batch_size"],
        shuffle=True,
        drop_last=job.get("drop_last", False),
        generator=torch.Generator().manual_seed(seed),
    )
    steps_left = job.get("max_steps", job.get("epochs", 0) * len(loader))
    model.train()
    while steps_left:
        loss_sum = num_samples = 0
        num_steps = 0
        lr = optimizer.param_groups[0]["lr"]
        for *x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = loss_fn(_call(model, names, x), y)
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            if schedule is not None and every == "step":
                lr = optimizer.param_groups[0]["lr"]
                schedule.step()
            loss_sum, num_samples = loss_sum + loss.item() * len(y), num_samples + len(y)
            num_steps, steps_left = num_steps + 1, steps_left - 1
            if not steps_left:
                break
        row = {"train_loss": loss_sum / num_samples, "lr": lr}
        row |= _evaluate(model, loss_fn, names, test, job["batch_size"], autocast)
        rows.append(row)
        if schedule is not None and every == "epoch" and num_steps == len(loader):
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                schedule.step(row.get("test_loss", row["train_loss"]))
            else:
                schedule.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, rows


@torch.no_grad()
def _evaluate(
    model: nn.Module,
    loss_fn: nn.Module,
    names: list[str] | None,
    test: tuple[Inputs, Tensor] | None,
    batch_size: int,
    autocast: Any,
) -> dict[str, float]:
    if test is None:
        return {}
    model.eval()
    _, tensors = _flat(test[0])
    loss_sum, num_right = 0.0, 0
    for start in range(0, len(test[1]), batch_size):
        x, y = [tensor[start : start + batch_size] for tensor in tensors], test[1][start : start + batch_size]
        with autocast():
            output = _call(model, names, x)
            loss_sum += loss_fn(output, y).item() * len(y)
        if not y.is_floating_point():
            num_right += int((output.argmax(1) == y).sum())
    model.train()
    return {"test_loss": loss_sum / len(test[1]), "accuracy": num_right / test[1].numel()}


def _flat(inputs: Inputs) -> tuple[list[str] | None, list[Tensor]]:
    return (list(inputs), list(inputs.values())) if isinstance(inputs, dict) else (None, [inputs])


def _call(model: nn.Module, names: list[str] | None, x: list[Tensor]) -> Tensor:
    output = model(*x) if names is None else model(**dict(zip(names, x, strict=True)))
    return output if isinstance(output, Tensor) else output["logits"]


def _component(module: Any, described: str | Mapping[str, Any], *arguments: Any) -> Any:
    if isinstance(described, str):
        return getattr(module, described)(*arguments)
    keywords = {key: value for key, value in described.items() if key not in {"name", "every"}}
    return getattr(module, described["name"])(*arguments, **keywords)


def _schedule(described: str | Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
    if described is None:
        return None, "epoch"
    every = "epoch" if isinstance(described, str) else described.get("every", "epoch")
    return _component(torch.optim.lr_scheduler, described, optimizer), every
