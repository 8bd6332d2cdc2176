"""How evenly a batch of real images covers its class: the measure behind DREAM's argument (DREAM §3.1)."""

import torch
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.sampling.kmeans import kmeans, nearest_members

RANDOM_DRAWS = 20  # random batches whose measures are averaged


def nearest_distance(features: Tensor, chosen: Tensor) -> float:
    """Return the mean Euclidean distance from a class's images to the nearest image of a batch.

    features: (n, D), one row per image of the class.
    chosen: (m,) rows of the batch.

    >>> nearest_distance(torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 2]))
    0.333...
    """
    return float(torch.cdist(features, features[chosen]).min(1).values.mean())


def clusters_hit(assignment: Tensor, chosen: Tensor) -> float:
    """Return the fraction of a class's clusters with at least one image in the batch.

    assignment: (n,) cluster of each image of the class.
    chosen: (m,) rows of the batch.

    >>> clusters_hit(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 3]))
    0.6666666666666666
    """
    return len(torch.unique(assignment[chosen])) / len(torch.unique(assignment))


def batch_coverage(features: Tensor, batch: int, seed: int, label: int) -> dict[str, tuple[int, float, float]]:
    """Return 'representative' and 'random' → (size, ``clusters_hit``, ``nearest_distance``) of batches of a class.

    features: (n, D), one row per image of the class.
    batch: images per batch and number of clusters, at most n.
    seed, label: source of the random numbers.

    The values of 'random' are means over ``RANDOM_DRAWS`` batches.
    """
    rng, size = generator(seed, "coverage", label), min(batch, len(features))
    clustering = kmeans(features.unsqueeze(0), size, rng, max_iterations=10, start="random")
    representative = nearest_members(features.unsqueeze(0), clustering)[0]
    random_batches = [torch.randperm(len(features), generator=rng)[:size] for _ in range(RANDOM_DRAWS)]
    measures = {}
    for kind, batches in {"representative": [representative], "random": random_batches}.items():
        hits = [clusters_hit(clustering.assignment[0], rows) for rows in batches]
        distances = [nearest_distance(features, rows) for rows in batches]
        measures[kind] = (size, sum(hits) / len(hits), sum(distances) / len(distances))
    return measures
