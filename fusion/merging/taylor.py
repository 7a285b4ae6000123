"""How much a task's loss would change without a neuron: first-order Taylor expansion at a gate of one.

Source: Molchanov et al., *Importance Estimation for Neural Network Pruning* (CVPR 2019), which PAM calls P2 (section 6.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.merging.gates import Gates
from fusion.merging.training import Trainer


def taylor_scores(trainer: Trainer, task: str, num_batches: int) -> dict[int, Tensor]:
    """Return the importance of each neuron for one task.

    It is the sum over batches of the squared gradient of the task's loss with respect to a factor of one that the neuron's
    values are multiplied with, taken in evaluation mode.

    Args:
        trainer: Of the network; batches are taken from its data.
        task: Whose loss.
        num_batches: At least 1.

    Returns:
        By prunable space ``(n,)``, at least 0; 0 for neurons that the task does not read.
    """
    merged = trainer.merged
    was = merged.training
    merged.eval()
    device = next(merged.parameters()).device
    factors = {space: torch.ones(len(merged.neurons[space]), device=device, requires_grad=True) for space in merged.prunable}
    sums = {space: torch.zeros_like(factor, requires_grad=False) for space, factor in factors.items()}
    for _ in range(num_batches):
        loss = trainer.loss(trainer.next_batch(), [task], Gates(merged, factors))
        found = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
        for space, gradient in zip(factors, found, strict=True):
            if gradient is not None:
                sums[space] += gradient.square()
    merged.train(was)
    return {space: values.cpu() for space, values in sums.items()}
