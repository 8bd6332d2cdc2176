"""Initialisation of the canvases: noise, random real images, or k-means representatives of each class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.sampling.kmeans import Clustering, kmeans, nearest_members, squared_distances
from dreamlib.sampling.real_batches import Embed, class_pool
from dreamlib.synthetic.decode import formation, tile
from dreamlib.synthetic.frequency import affordable, pack, strongest
from dreamlib.synthetic.synthetic_set import SyntheticSet

INITS: Registry[str] = Registry("initialisation")
for _name, _description in {
    "noise": "Gaussian noise: standard normal for normalised canvases (DC), else around 0.5, clamped to [0, 1] (IDC)",
    "random": "random real images of the class, no image twice",
    "kmeans": "the real image nearest to each centre of k-means on features (DREAM)",
    "released": "k-means as in DREAM's released code: images not normalised, the nearest of all images of the class",
    "herding": "real images whose mean feature is closest to the class's (see dreamlib.sampling.coresets)",
    "k_center": "real images with no image of the class far from all of them (see dreamlib.sampling.coresets)",
}.items():
    INITS.register(_name)(_description)
CLUSTERED = ("kmeans", "released")  # initialisations from k-means representatives


def images_needed(ipc: int, factor: int, rule: str = "single") -> int:
    """Return how many real images fill the ``ipc`` canvases of a class; ``factor`` and ``rule`` as in ``formation``.

    >>> images_needed(10, 2), images_needed(1, 1)
    (40, 1)
    """
    return sum(f * f for f in formation(ipc, factor, rule))


def check_budget(
    data: LabeledImages, info: DatasetInfo, ipc: int, factor: int, rule: str = "single", init: str = "random"
) -> None:
    """Check that the real images can fill a set; noise fills any.

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
    if needed > fewest and init != "noise":
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


@dataclass(frozen=True)
class ClassClusters:
    """The clustering of one class.

    members: (n,) rows of the data that were clustered.
    features: (n, D), their features.
    clustering: the result of k-means, a batch of one.
    representatives: (k,) rows of the data, the image nearest to each centre.
    """

    members: Tensor
    features: Tensor
    clustering: Clustering
    representatives: Tensor


def cluster_class(
    data: LabeledImages,
    label: int,
    count: int,
    seed: int,
    embed: Embed,
    pool: int = 0,
    max_iterations: int = 50,
    pick: str = "members",
) -> ClassClusters:
    """Cluster one class and choose the image nearest to each centre (DREAM §3.3).

    data: the real images.
    label: the class.
    count: number of clusters, k.
    seed: source of all random numbers.
    embed: images (n, C, H, W) → features (n, D).
    pool: random images of the class that are clustered; 0 takes all.
    max_iterations: most Lloyd iterations.
    pick: 'members' starts from k-means++ and chooses among the members of each cluster, none of which is empty, so no
        image is chosen twice. 'released' does as DREAM's released code: k-means starts from random rows and leaves an
        empty cluster's centre at zero, and the nearest of all images is chosen, so an image may be chosen twice.
    """
    rng = generator(seed, "init-kmeans", label, count)
    members = class_pool(data, label, pool, rng)
    features = embed(data.pixels(members)).float()
    released = pick == "released"
    start = "random" if released else "k-means++"
    points = features.unsqueeze(0)  # (1, n, D)
    clustering = kmeans(points, count, rng, max_iterations=max_iterations, start=start, keep_empty=released)
    if released:
        nearest = squared_distances(points, clustering.centers)[0].argmin(0)
    else:
        nearest = nearest_members(points, clustering)[0]
    return ClassClusters(members, features, clustering, members[nearest])


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
    count = affordable(len(labels), factor, tuple(images.shape[1:]))
    frequencies = strongest(data.images, count)
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
