"""How evenly a batch of real images stands for its class: the measure behind DREAM's argument (DREAM §3.1)."""

import torch
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.sampling.kmeans import kmeans, nearest_members

RANDOM_DRAWS = 20  # random batches averaged over, so that the comparison is not one lucky draw


def nearest_distance(features: Tensor, chosen: Tensor) -> float:
    """Mean Euclidean distance from each of a class's images to the nearest batch member; smaller covers better.

    ``features`` (n, D), ``chosen`` (m,) rows of it.

    >>> nearest_distance(torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 2]))
    0.333...
    """
    return float(torch.cdist(features, features[chosen]).min(1).values.mean())


def clusters_hit(assignment: Tensor, chosen: Tensor) -> float:
    """Share of a class's clusters from which the batch holds at least one image.

    >>> clusters_hit(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 3]))
    0.6666666666666666
    """
    return len(torch.unique(assignment[chosen])) / len(torch.unique(assignment))


def batch_coverage(features: Tensor, batch: int, seed: int, label: int) -> dict[str, tuple[int, float, float]]:
    """Return, for a representative and for random batches of a class: size, share of sub-clusters hit, mean distance.

    features: (n, D), one row an image of the class.
    batch: images in a batch, and number of sub-clusters that k-means makes; at most n.
    seed, label: what the randomness comes from.

    The distance is that of ``nearest_distance``. The random row averages ``RANDOM_DRAWS`` batches.
    """
    rng, size = generator(seed, "coverage", label), min(batch, len(features))
    found = kmeans(features.unsqueeze(0), size, rng, max_iterations=10, start="random")
    representative = nearest_members(features.unsqueeze(0), found)[0]
    draws = [torch.randperm(len(features), generator=rng)[:size] for _ in range(RANDOM_DRAWS)]
    rows = {}
    for kind, batches in {"representative": [representative], "random": draws}.items():
        hit = [clusters_hit(found.assignment[0], b) for b in batches]
        far = [nearest_distance(features, b) for b in batches]
        rows[kind] = (size, sum(hit) / len(hit), sum(far) / len(far))
    return rows
