"""Initialisation of the canvases: the interface, and noise, random real images and k-means representatives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.sampling.real_batches import Embed
from dreamlib.settings import DistillParams
from dreamlib.synthetic.decode import formation, tile
from dreamlib.synthetic.frequency import max_frequencies, pack, strongest_frequencies
from dreamlib.synthetic.synthetic_set import SyntheticSet

INITS: Registry[type["Initialisation"]] = Registry("initialisation")


@dataclass(frozen=True)
class StartState:
    """Everything that an initialisation may use.

    data, info: the real training images in the units of the canvases, and their description.
    settings: the distillation's settings, of which ``factor``, ``decode`` and ``shrink`` describe the canvases.
    ipc: canvases per class.
    seed: source of all random numbers, by ``generator(seed, "purpose", ...)``.
    pixels: the same images as pixels in [0, 1], as ``embedder`` takes them.
    pool: number of random images per class to choose from; 0 for all.
    embedder: returns the feature map of the clustering, for which it may train a network.
    representatives: number of clusters → rows (K, number) that the clustering stage has chosen.
    """

    data: LabeledImages
    info: DatasetInfo
    settings: DistillParams
    ipc: int
    seed: int
    pixels: LabeledImages
    pool: int
    embedder: Callable[[], Embed]
    representatives: Callable[[int], Tensor]

    @property
    def count(self) -> int:
        """The number of real images that fill the canvases of a class."""
        return images_needed(self.ipc, self.settings.factor, self.settings.decode)


class Initialisation(ABC):
    """What the canvases hold before the first iteration. A subclass is registered in ``INITS``."""

    # Whether real images fill the canvases; each class must then have enough of them.
    needs_images: ClassVar[bool] = False
    # Whether they are chosen among the pool of the clustering, which must then be large enough.
    uses_pool: ClassVar[bool] = False

    @abstractmethod
    def start(self, state: StartState) -> SyntheticSet:
        """Return the set that a run starts from."""


class RealImages(Initialisation):
    """Canvases filled with real images, which a subclass chooses."""

    needs_images = True

    def start(self, state: StartState) -> SyntheticSet:
        """See ``Initialisation.start`` and ``fill``."""
        settings = state.settings
        return fill(state.data, self.rows(state), state.ipc, settings.factor, settings.decode, settings.shrink)

    @abstractmethod
    def rows(self, state: StartState) -> Tensor:
        """Return the rows (K, ``state.count``) of ``state.data`` whose images fill the canvases."""


@INITS.register("noise")
class Noise(Initialisation):
    """Gaussian noise: standard normal for normalised canvases (DC), else around 0.5, clamped to [0, 1] (IDC)."""

    def start(self, state: StartState) -> SyntheticSet:
        """See ``Initialisation.start`` and ``noise``."""
        settings = state.settings
        return noise(state.data, state.info, state.ipc, settings.factor, settings.decode, state.seed)


@INITS.register("random")
class RandomImages(RealImages):
    """Random real images of the class, no image twice."""

    def rows(self, state: StartState) -> Tensor:
        """See ``RealImages.rows`` and ``random_rows``."""
        return random_rows(state.data, state.count, state.seed)


@INITS.register("kmeans")
class Representatives(RealImages):
    """The real image nearest to each centre of k-means on features (DREAM)."""

    uses_pool = True

    def rows(self, state: StartState) -> Tensor:
        """See ``RealImages.rows`` and ``dreamlib.sampling.representatives.cluster_class``."""
        return state.representatives(state.count)


@INITS.register("released")
class ReleasedRepresentatives(Representatives):
    """K-means as in DREAM's released code: un-normalised images; the nearest image of the whole class."""


def images_needed(ipc: int, factor: int, rule: str = "single") -> int:
    """Return how many real images fill the ``ipc`` canvases of a class; ``factor`` and ``rule`` as in ``formation``.

    >>> images_needed(10, 2), images_needed(1, 1)
    (40, 1)
    """
    return sum(f * f for f in formation(ipc, factor, rule))


def check_budget(
    data: LabeledImages, info: DatasetInfo, ipc: int, factor: int, rule: str = "single", init: str = "random"
) -> None:
    """Check that the real images can fill a set; noise needs none.

    data, info: training images and the description of their data set.
    ipc, factor, rule: see ``dreamlib.synthetic.decode.formation``.
    init: registered name of the initialisation.

    Raise ValueError if a class has too few images or a crop would have less than 2×2 pixels.
    """
    if info.size // factor < 2:
        raise ValueError(
            f"factor {factor} leaves {info.size // factor} pixels a side of {info.name}'s {info.size}×{info.size} "
            f"images; at least 2 are needed: choose factor ≤ {info.size // 2}"
        )
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    smallest, fewest = int(counts.argmin()), int(counts.min())
    needed = images_needed(ipc, factor, rule)
    if needed > fewest and INITS[init].needs_images:
        largest = next((n for n in range(ipc, 0, -1) if images_needed(n, factor, rule) <= fewest), 0)
        remedy = f"choose ipc ≤ {largest}, or a smaller factor or" if largest else "choose a smaller factor or"
        raise ValueError(
            f"ipc {ipc} at factor {factor} needs {needed} real images per class, but class "
            f"'{info.classes[smallest]}' of {info.name} has {fewest} for training: {remedy} validation split"
        )


def random_rows(data: LabeledImages, count: int, seed: int) -> Tensor:
    """Return rows (K, count) of ``data``, drawn uniformly without replacement from each class."""
    rows = []
    for label in range(data.num_classes):
        class_rows = data.of_class(label)
        order = torch.randperm(len(class_rows), generator=generator(seed, "init", label))
        rows.append(class_rows[order[:count].to(class_rows.device)])
    return torch.stack(rows)


def fill(data: LabeledImages, rows: Tensor, ipc: int, factor: int, rule: str, shrink: str = "area") -> SyntheticSet:
    """Return the synthetic set whose canvases store the given real images.

    data: the real images.
    rows: (K, ``images_needed``) rows of ``data``.
    ipc, factor, rule: see ``dreamlib.synthetic.decode.formation``. The rule 'dct' stores an image as its coefficients
        at the frequencies strongest in ``data``, as many as fit into the storage of the canvases.
    shrink: see ``dreamlib.synthetic.decode.tile``; not used by 'dct'.
    """
    labels = torch.arange(data.num_classes, device=data.labels.device).repeat_interleave(ipc)
    if rule == "dct":
        return _spectra(data, data.pixels(rows.flatten()), labels, factor)
    canvases = []
    for label_rows in rows:
        images, start = data.pixels(label_rows), 0
        factors = formation(ipc, factor, rule)
        for f in sorted(set(factors), reverse=True):
            count = factors.count(f) * f * f
            canvases.append(tile(images[start : start + count], f, shrink))
            start += count
    return SyntheticSet(torch.cat(canvases), labels, data.num_classes, factor, rule)


def _spectra(data: LabeledImages, images: Tensor, labels: Tensor, factor: int) -> SyntheticSet:
    """Return the set that stores images (K·ipc·factor², C, H, W) as coefficients; ``labels`` (K·ipc,) of canvases."""
    count = max_frequencies(len(labels), factor, tuple(images.shape[1:]))
    frequencies = strongest_frequencies(data.images, count)
    canvases = pack(images, frequencies, factor)
    return SyntheticSet(canvases, labels, data.num_classes, factor, "dct", frequencies=frequencies)


def noise(data: LabeledImages, info: DatasetInfo, ipc: int, factor: int, rule: str, seed: int) -> SyntheticSet:
    """Return a set of Gaussian noise: N(0.5, 0.25²) clamped to [0, 1] if ``info.bounded`` (IDC), else N(0, 1) (DC).

    data: real images, for their shape and, under the rule 'dct', their strongest frequencies.
    info: the data set's description.
    ipc, factor, rule: see ``dreamlib.synthetic.decode.formation``.
    seed: source of the random numbers.
    """
    canvases = data.num_classes * ipc
    count = canvases * factor**2 if rule == "dct" else canvases
    images = torch.randn((count, *data.images.shape[1:]), generator=generator(seed, "init-noise"))
    images = ((0.25 * images + 0.5).clamp(0, 1) if info.bounded else images).to(data.images.device)
    labels = torch.arange(data.num_classes, device=images.device).repeat_interleave(ipc)
    if rule == "dct":
        return _spectra(data, images, labels, factor)
    return SyntheticSet(images, labels, data.num_classes, factor, rule)
