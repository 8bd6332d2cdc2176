"""Batches that DREAM compares its representatives with: the most central and the boundary images of a class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamlib.sampling.real_batches import SAMPLERS, Embed, IntervalSampler, Predict


@SAMPLERS.register("center")
@dataclass
class CenterSampler(IntervalSampler):
    """The images nearest to the class's mean feature: similar ones, none near the boundary (ablation, DREAM §3.1)."""

    def choose(self, label: int, members: Tensor, rng: torch.Generator, embed: Embed, predict: Predict) -> Tensor:
        """See ``IntervalSampler.choose``; ties go to the lower row."""
        features = embed(self.data.pixels(members)).float()  # (n, D)
        distances = (features - features.mean(0)).square().sum(1)
        return members[distances.argsort(stable=True)[: self.batch]]


@SAMPLERS.register("boundary")
@dataclass
class BoundarySampler(IntervalSampler):
    """The images that the current network is least sure about (ablation, DREAM §3.1).

    They have the smallest margin: the logit of their class minus the largest other logit. It equals a difference of
    log-probabilities and is negative for misclassified images. Margins of an untrained network carry little
    information.
    """

    def choose(self, label: int, members: Tensor, rng: torch.Generator, embed: Embed, predict: Predict) -> Tensor:
        """See ``IntervalSampler.choose``; ties go to the lower row."""
        margin = margins(predict(self.data.pixels(members)), label)
        return members[margin.argsort(stable=True)[: self.batch]]


def margins(logits: Tensor, label: int) -> Tensor:
    """Return the margins (n,) of logits (n, K): the logit of class ``label`` minus the largest other one.

    >>> margins(torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), 0).tolist()
    [1.0, -4.0]
    """
    is_label = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    is_label[label] = True
    return logits[:, label].float() - logits.float().masked_fill(is_label, -torch.inf).max(1).values
