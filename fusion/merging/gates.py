"""A factor for each neuron wherever it is read, so that a factor of zero is the neuron's removal."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fusion.merging.merged import MergedNetwork, Step


def by_neuron(merged: MergedNetwork, step: Step, values: Tensor) -> Tensor:
    """Return one value for each neuron of a space in the shape of a step's feature.

    Args:
        merged: The network.
        step: One of its steps.
        values: ``(n,)``, for the neurons of the step's space.

    Returns:
        ``(1, channels, 1, …)``, or ``(1, features)``, to be multiplied with the feature.
    """
    chosen = values[merged.channels(step).to(values.device)]
    if step.is_flat:
        return chosen.repeat_interleave(step.positions)[None]
    return chosen.view(1, -1, *[1] * len(step.shape))


class Gates:
    """Factors by space, as a gate for :class:`~fusion.merging.merged.MergedNetwork`."""

    def __init__(self, merged: MergedNetwork, factors: Mapping[int, Tensor]) -> None:
        self.merged = merged
        self.factors = factors

    def __call__(self, step: Step, feature: Tensor) -> Tensor:
        """Return the feature with each neuron times its factor."""
        return feature * by_neuron(self.merged, step, self.factors[step.space]).to(feature.dtype)
