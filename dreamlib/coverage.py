"""How evenly a batch of real images stands for its class: the measure behind DREAM's argument (DREAM §3.1)."""

import pandas as pd
import torch
from torch import Tensor

from dreamlib.initialize import ClassClusters
from dreamlib.kmeans import kmeans, nearest_members
from dreamlib.seeding import generator
from dreamlib.types import DatasetInfo

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


def coverage_table(classes: list[ClassClusters], info: DatasetInfo, batch: int, seed: int) -> pd.DataFrame:
    """For each class and kind of batch: size, share of ``batch`` sub-clusters hit, mean distance to the nearest member.

    Sub-clusters are k-means' into ``batch`` clusters. The random rows average ``RANDOM_DRAWS`` batches.
    """
    rows = []
    for label, clusters in enumerate(classes):
        rng = generator(seed, "coverage", label)
        features, size = clusters.features, min(batch, len(clusters.features))
        found = kmeans(features.unsqueeze(0), size, rng, max_iterations=10, start="random")
        representative = nearest_members(features.unsqueeze(0), found)[0]
        draws = [torch.randperm(len(features), generator=rng)[:size] for _ in range(RANDOM_DRAWS)]
        for kind, batches in {"representative": [representative], "random": draws}.items():
            hit = [clusters_hit(found.assignment[0], b) for b in batches]
            far = [nearest_distance(features, b) for b in batches]
            rows.append((info.classes[label], kind, size, sum(hit) / len(hit), sum(far) / len(far)))
    return pd.DataFrame(rows, columns=["class", "batch", "images", "clusters_hit", "nearest_distance"])


def coverage_means(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The table's means over classes, by kind of batch."""
    if table.empty:
        return {}
    means = table.groupby("batch")[["clusters_hit", "nearest_distance"]].mean()
    return {str(kind): {k: float(v) for k, v in row.items()} for kind, row in means.iterrows()}
