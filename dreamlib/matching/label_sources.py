"""Label sources: how a set's decoded images are labelled once their pixels are final.

Soft labels add K stored numbers per image (counted by ``SyntheticSet.stored_floats``) and change the evaluation, so
sets with them are compared only with each other. Objectives that learn labels: ``dreamlib.matching.soft_labels``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.settings import DistillParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import predict
from dreamlib.training.trainer import TrainSettings, fit

LABELS: Registry[type["LabelSource"]] = Registry("label source")


@dataclass(frozen=True)
class LabelState:
    """Everything that a label source may use.

    data, info: the real training images in the units of the canvases, and their description.
    settings: the distillation's settings.
    network: (name, options) of the matched architecture.
    compute: device and number format.
    seed: source of all random numbers, by ``generator(seed, "purpose", ...)``.
    """

    data: LabeledImages
    info: DatasetInfo
    settings: DistillParams
    network: tuple[str, dict[str, Any]]
    compute: Compute
    seed: int


class LabelSource(ABC):
    """A rule that labels images. A subclass is registered in ``LABELS``."""

    # Whether the labels are probabilities, which would replace those an objective learns.
    soft: ClassVar[bool] = True

    @abstractmethod
    def probabilities(self, images: Tensor, classes: Tensor, state: LabelState) -> Tensor | None:
        """Return the labels (N, K) of decoded images, each row a distribution; None to keep the labels as they are.

        images: (N, C, H, W), in the units of the canvases, without augmentation.
        classes: (N,), their class numbers.
        """


def label(synthetic: SyntheticSet, state: LabelState) -> SyntheticSet:
    """Return the set with labels from the source that ``settings.labels`` names."""
    images, classes = synthetic.decode()
    probabilities = LABELS[state.settings.labels]().probabilities(images.detach(), classes, state)
    return synthetic if probabilities is None else replace(synthetic, soft_labels=probabilities.to(images.device))


@LABELS.register("hard")
class HardLabels(LabelSource):
    """Class numbers, or the labels that the objective has learned."""

    soft = False

    def probabilities(self, images: Tensor, classes: Tensor, state: LabelState) -> None:
        """Return None."""
        return None


@LABELS.register("assigned")
class TeacherLabels(LabelSource):
    """The probabilities of a teacher trained on the real images (Hinton et al. 2015)."""

    def probabilities(self, images: Tensor, classes: Tensor, state: LabelState) -> Tensor:
        """See ``LabelSource.probabilities`` and ``train_teacher``."""
        teacher, kernels = train_teacher(state)
        return predict(teacher, images.to(state.compute.device), state.info, kernels).softmax(1)


def train_teacher(state: LabelState) -> tuple[nn.Module, CompiledNetwork]:
    """Return a network trained on the real images for ``teacher_epochs`` passes, and its compiled functions.

    Its seed is derived from ``state.seed`` for this purpose, so that no evaluated network has its initial weights.
    """
    settings, info, compute, seed = state.settings, state.info, state.compute, derive(state.seed, "teacher")
    name, options = state.network
    augmentation = augmentation_for(info, settings.network_augmentation)
    training = TrainSettings(batch=128, augmentation=augmentation, cutmix=settings.cutmix)
    teacher = compute.place(build(name, info, generator(seed, "network"), options))
    kernels, data = CompiledNetwork(teacher, compute), state.data.to(compute.device)
    fit(teacher, data.images, data.labels, info, training, kernels, epochs=settings.teacher_epochs, seed=seed)
    return teacher, kernels
