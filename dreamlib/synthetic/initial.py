"""The canvases distillation starts from: noise, random real images, or each class's k-means representatives."""

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
for _name, _what in {
    "noise": "Gaussian noise: standard where canvases are normalised (DC), else around .5 and clamped to [0, 1] (IDC)",
    "random": "random real images of the class, no image twice",
    "kmeans": "the real image nearest to each centre of k-means on features (DREAM)",
    "released": "k-means as in DREAM's released code: un-normalised pixels, nearest of all, nearest-neighbour shrink",
    "herding": "the real images whose mean feature is the class's (see dreamlib.sampling.coresets)",
    "k_center": "real images none of the class is far from (see dreamlib.sampling.coresets)",
}.items():
    INITS.register(_name)(_what)
CLUSTERED = ("kmeans", "released")  # those that start from the clustering stage's representatives


def images_needed(ipc: int, factor: int, rule: str = "single") -> int:
    """How many real images fill one class's canvases.

    >>> images_needed(10, 2), images_needed(1, 1)
    (40, 1)
    """
    return sum(f * f for f in formation(ipc, factor, rule))


def check_budget(
    data: LabeledImages, info: DatasetInfo, ipc: int, factor: int, rule: str = "single", init: str = "random"
) -> None:
    """Refuse, before any work, a set the data cannot fill: too few images in a class, or crops without pixels.

    Noise fills any number of canvases.

    Raises ValueError with the value, the limit and the remedy.
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
        most = next((n for n in range(ipc, 0, -1) if images_needed(n, factor, rule) <= fewest), 0)
        fewer = f"choose ipc ≤ {most}, or a smaller factor or" if most else "choose a smaller factor or"
        raise ValueError(
            f"ipc {ipc} at factor {factor} needs {needed} real images a class, but class '{info.classes[smallest]}' of "
            f"{info.name} has {fewest} for training: {fewer} validation split"
        )


def random_rows(data: LabeledImages, count: int, seed: int) -> Tensor:
    """Rows (K, count) drawn uniformly without replacement within each class."""
    chosen = []
    for label in range(data.num_classes):
        members = data.of_class(label)
        order = torch.randperm(len(members), generator=generator(seed, "init", label))
        chosen.append(members[order[:count].to(members.device)])
    return torch.stack(chosen)


@dataclass(frozen=True)
class ClassClusters:
    """One class clustered: the rows of the data that took part (n,), their features (n, D), what k-means found, and the
    representatives (k,), the row nearest to each centre.
    """

    members: Tensor
    features: Tensor
    found: Clustering
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
    """Cluster one class into ``count`` and pick the image nearest to each centre (DREAM §3.3).

    With ``pick='members'`` a cluster offers its own members and none is empty, so no image is picked twice. 'released'
    does as DREAM's released code: random rows to start from, the nearest of all the class's images, whichever cluster
    it is in, and an empty cluster's centre at zero, so that an image may come twice.
    """
    rng = generator(seed, "init-kmeans", label, count)
    members = class_pool(data, label, pool, rng)
    features = embed(data.images[members]).float()
    released = pick == "released"
    start = "random" if released else "k-means++"
    found = kmeans(features.unsqueeze(0), count, rng, max_iterations=max_iterations, start=start, keep_empty=released)
    if released:
        chosen = squared_distances(features.unsqueeze(0), found.centers)[0].argmin(0)
    else:
        chosen = nearest_members(features.unsqueeze(0), found)[0]
    rows = members[chosen]
    return ClassClusters(members, features, found, rows)


def fill(data: LabeledImages, rows: Tensor, ipc: int, factor: int, rule: str, shrink: str = "area") -> SyntheticSet:
    """The synthetic set whose canvases hold the given real images, (K, images_needed) rows of ``data``.

    Under the rule 'dct' an image is kept as its coefficients at the frequencies strongest in ``data``, as many as the
    storage of the canvases allows.
    """
    labels = torch.arange(data.num_classes, device=data.labels.device).repeat_interleave(ipc)
    if rule == "dct":
        return _spectra(data, data.images[rows.flatten()], labels, factor)
    canvases = []
    for label_rows in rows:
        images, parts, start = data.images[label_rows], [], 0
        factors = formation(ipc, factor, rule)
        for f in sorted(set(factors), reverse=True):
            count = factors.count(f) * f * f
            parts.append(tile(images[start : start + count], f, shrink))
            start += count
        canvases.append(torch.cat(parts))
    return SyntheticSet(torch.cat(canvases), labels, data.num_classes, factor, rule)


def _spectra(data: LabeledImages, images: Tensor, labels: Tensor, factor: int) -> SyntheticSet:
    """The set that keeps images (K·ipc·factor², C, H, W) as coefficients, for canvases of these labels."""
    kept = affordable(len(labels), factor, tuple(images.shape[1:]))
    frequencies = strongest(data.images, kept)
    canvases = pack(images, frequencies, factor)
    return SyntheticSet(canvases, labels, data.num_classes, factor, "dct", frequencies=frequencies)


def noise(data: LabeledImages, info: DatasetInfo, ipc: int, factor: int, rule: str, seed: int) -> SyntheticSet:
    """Canvases of Gaussian noise: standard normal where pixels are normalised (DC), else .25 · normal + .5, clamped to
    [0, 1] (IDC).
    """
    count = data.num_classes * ipc
    images = count * factor**2 if rule == "dct" else count
    drawn = torch.randn((images, *data.images.shape[1:]), generator=generator(seed, "init-noise"))
    drawn = ((0.25 * drawn + 0.5).clamp(0, 1) if info.bounded else drawn).to(data.images.device)
    labels = torch.arange(data.num_classes, device=drawn.device).repeat_interleave(ipc)
    if rule == "dct":
        return _spectra(data, drawn, labels, factor)
    return SyntheticSet(drawn, labels, data.num_classes, factor, rule)
