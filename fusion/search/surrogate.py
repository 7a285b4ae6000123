"""What a search believes of the drop of candidates that it has not trained: a Bayesian linear model of few features.

The features of a graph are what tells how much is asked of it: how unlike what each block used to get is to what it gets now,
how much of the cost is gone, how many blocks a task has lost. The model is refitted after every candidate, in closed form
(Bishop, Pattern Recognition and Machine Learning, section 3.3), with a prior that is right before the first one: sharing what
is alike is cheap, sharing what is not is dear. The idea of ranking stitches by similarity is that of DeRy and KLAS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.search.absgraph import BlockId, Graph

#: Added to a drop before its logarithm is taken: below that, drops are noise.
FLOOR = 0.003
#: Of 1, largest and mean dissimilarity of a task, share of the cost gone, and largest share of a task's blocks gone.
_PRIOR_MEAN = np.array([-5.0, 1.0, 0.5, 1.5, 0.5])
_PRIOR_SIGMA = np.array([1.0, 1.0, 1.0, 1.0, 1.0])
_NOISE = 0.6
NUM_FEATURES = len(_PRIOR_MEAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """The posterior of the weights: mean ``(features,)`` and a factor L of its covariance L L^T ``(features, features)``."""

    mean: np.ndarray
    factor: np.ndarray

    def chance(self, features: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the probability that the drop is at most ``threshold``, per row of ``features`` ``(graphs, features)``.

        Args:
            features: As :func:`features_of` gives them.
            threshold: An allowed drop.
            weights: Weights drawn from the posterior; None takes its mean and adds its spread to the noise.
        """
        centre = features @ (self.mean if weights is None else weights)
        spread = np.full(len(features), _NOISE)
        if weights is None:
            spread = np.sqrt(spread**2 + np.square(features @ self.factor).sum(1))
        return _normal_cdf((math.log(threshold + FLOOR) - centre) / spread)

    def draw(self, normals: Sequence[float]) -> np.ndarray:
        """Return weights drawn from the posterior with standard normal numbers, one per feature."""
        return self.mean + self.factor @ np.asarray(normals)


def believe(features: np.ndarray, drops: Sequence[float]) -> Belief:
    """Return the posterior after candidates with ``features`` ``(candidates, features)`` had these drops."""
    precision = np.diag(_PRIOR_SIGMA**-2.0)
    moment = precision @ _PRIOR_MEAN
    if len(drops):
        logs = np.log(np.clip(drops, 0.0, 1.0) + FLOOR)
        precision = precision + features.T @ features / _NOISE**2
        moment = moment + features.T @ logs / _NOISE**2
    covariance = np.linalg.inv(precision)
    return Belief(mean=covariance @ moment, factor=np.linalg.cholesky((covariance + covariance.T) / 2))


def features_of(graph: Graph, cost_share: float, dissimilarity: Mapping[tuple[BlockId, BlockId], float]) -> np.ndarray:
    """Return the features of a graph.

    Args:
        graph: The graph.
        cost_share: Its cost over the original's.
        dissimilarity: Of (host, guest): 0 where the inputs of two blocks say the same, up to 1.
    """
    asked = [0.0] * len(graph.space.tasks)
    served = graph.tasks_of()
    kept = [0] * len(asked)
    for block, edge in graph.edges:
        for task in served[block]:
            kept[task] += 1
        used = BlockId(block.task, 0) if edge.source is None else BlockId(edge.source.task, edge.source.op + 1)
        if used != block:
            strange = dissimilarity.get((used, block), 1.0)
            for task in served[block]:
                asked[task] += strange
    gone = max(1 - count / len(blocks) for count, blocks in zip(kept, graph.space.blocks, strict=True))
    return np.array([1.0, max(asked), sum(asked) / len(asked), 1 - cost_share, max(0.0, gone)])


def _normal_cdf(values: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values])
