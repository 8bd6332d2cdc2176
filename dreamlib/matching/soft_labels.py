"""Soft labels: a teacher's probabilities for each decoded image (assigned), or learned with the pixels (learned).

They take K numbers per image of storage and change the protocol, so such sets are compared only with each other
(``SyntheticSet.stored_floats`` counts them).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import predict
from dreamlib.training.trainer import TrainSettings, fit

LOGITS = "label_logits"  # the name of learned labels in a set's extras


def train_teacher(
    data: LabeledImages,
    info: DatasetInfo,
    network: tuple[str, dict[str, Any]],
    settings: TrainSettings,
    compute: Compute,
    *,
    epochs: int,
    seed: int,
) -> tuple[torch.nn.Module, CompiledNetwork]:
    """Return a network trained on the real images for ``epochs`` passes, and its compiled functions.

    Its seed is derived from ``seed`` for this purpose, so that no evaluated network has the teacher's initial weights.
    Raises ValueError for less than one epoch: an untrained teacher has no information about the classes.
    """
    if epochs < 1:
        raise ValueError(f"teacher_epochs = {epochs}: a teacher needs at least 1; raise it, or set labels: hard")
    teacher_seed = derive(seed, "teacher")
    name, options = network
    teacher = compute.place(build(name, info, generator(teacher_seed, "network"), options))
    kernels, placed = CompiledNetwork(teacher, compute), data.to(compute.device)
    fit(teacher, placed.images, placed.labels, info, settings, kernels, epochs=epochs, seed=teacher_seed)
    return teacher, kernels


def assign_soft_labels(
    synthetic: SyntheticSet,
    teacher: torch.nn.Module,
    info: DatasetInfo,
    kernels: CompiledNetwork,
    temperature: float = 1.0,
) -> SyntheticSet:
    """Return the set with the teacher's probabilities as labels (M, K), a row per decoded image (Hinton et al. 2015).

    They are softmax(logits / temperature) of the images as stored, without augmentation; a higher temperature gives
    more weight to the other classes. Evaluation uses them in place of class numbers.

    Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0; 1 leaves the teacher's probabilities unchanged")
    images, _ = synthetic.decode()
    logits = predict(teacher, images.detach().to(kernels.compute.device), info, kernels)  # (M, K)
    return replace(synthetic, soft_labels=(logits / temperature).softmax(1).to(synthetic.canvases.device))


def check_confidence(confidence: float, classes: int) -> None:
    """Raise ValueError unless 1/K < ``confidence`` < 1: at 1 the logits are infinite, at 1/K all classes are equal.

    >>> check_confidence(0.9, 10)
    """
    if not 1 / classes < confidence < 1:
        raise ValueError(f"options.label_confidence = {confidence} must lie between 1/{classes} and 1, for example 0.9")


def starting_logits(start: SyntheticSet, confidence: float) -> Tensor:
    """Return initial label logits (M, K): the set's soft labels, else ``confidence`` in each image's class.

    Raises ValueError for a ``confidence`` out of range (see ``check_confidence``).

    >>> start = SyntheticSet(torch.zeros(2, 1, 4, 4), torch.arange(2), 2)
    >>> starting_logits(start, 0.9).softmax(1)
    tensor([[0.9000, 0.1000],
            [0.1000, 0.9000]])
    """
    if start.soft_labels is not None:
        return start.soft_labels.clamp_min(torch.finfo(start.soft_labels.dtype).tiny).log()
    classes = start.num_classes
    check_confidence(confidence, classes)
    _, hard = start.decode()
    odds = confidence / (1 - confidence) * (classes - 1)
    return F.one_hot(hard, classes).to(start.canvases.dtype) * torch.tensor(odds).log().item()


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
