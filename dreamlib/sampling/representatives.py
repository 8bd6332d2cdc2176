"""The real images nearest to the centres of k-means on a class's features (DREAM §3.3)."""

from dataclasses import dataclass

from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.data.types import LabeledImages
from dreamlib.sampling.kmeans import Clustering, kmeans, nearest_members, squared_distances
from dreamlib.sampling.real_batches import Embed, class_pool


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
    features = embed(data.images[members]).float()
    released = pick == "released"
    start = "random" if released else "k-means++"
    points = features.unsqueeze(0)  # (1, n, D)
    clustering = kmeans(points, count, rng, max_iterations=max_iterations, start=start, keep_empty=released)
    if released:
        nearest = squared_distances(points, clustering.centers)[0].argmin(0)
    else:
        nearest = nearest_members(points, clustering)[0]
    return ClassClusters(members, features, clustering, members[nearest])
