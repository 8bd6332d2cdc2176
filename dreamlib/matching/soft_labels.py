"""Soft labels that an objective learns with the pixels: initialisation, use in training, and storage."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamlib.synthetic.synthetic_set import SyntheticSet

LOGITS = "label_logits"  # the name of learned labels in a set's extras
CONFIDENCE = 0.9  # initial probability of an image's class


def starting_logits(start: SyntheticSet) -> Tensor:
    """Return initial label logits (M, K): the set's soft labels, else ``CONFIDENCE`` in each image's class.

    >>> starting_logits(SyntheticSet(torch.zeros(2, 1, 4, 4), torch.arange(2), 2)).softmax(1)
    tensor([[0.9000, 0.1000],
            [0.1000, 0.9000]])
    """
    if start.soft_labels is not None:
        return start.soft_labels.clamp_min(torch.finfo(start.soft_labels.dtype).tiny).log()
    _, hard = start.decode()
    odds = CONFIDENCE / (1 - CONFIDENCE) * (start.num_classes - 1)
    return F.one_hot(hard, start.num_classes).to(start.canvases.dtype) * torch.tensor(odds).log().item()


def labels_of(synthetic: SyntheticSet, hard: Tensor) -> Tensor:
    """Return the labels to train on: learned probabilities, else stored soft labels, else class numbers."""
    if LOGITS in synthetic.extras:
        return synthetic.extras[LOGITS].softmax(1)
    return hard if synthetic.soft_labels is None else synthetic.soft_labels


def keep_learned_labels(synthetic: SyntheticSet) -> SyntheticSet:
    """Return the set with its learned logits converted to soft labels, which are stored, counted and used as such."""
    if LOGITS not in synthetic.extras:
        return synthetic
    extras = {name: value for name, value in synthetic.extras.items() if name != LOGITS}
    return replace(synthetic, soft_labels=synthetic.extras[LOGITS].detach().softmax(1), extras=extras)
