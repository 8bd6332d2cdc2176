"""The real images nearest to the centres of k-means on a class's features, as initial canvases and batches (DREAM)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib._engine.strategies import Strategy
from dreamlib.data.types import LabeledImages
from dreamlib.sampling.kmeans import Clustering, kmeans, lloyd_steps, nearest_members, squared_distances
from dreamlib.sampling.real_batches import SAMPLERS, Embed, IntervalSampler, Predict, class_pool

MAX_GRAPHED_FEATURES = 2**27  # feature values clustered in a CUDA graph, which needs several times their memory
CLUSTERING_STEPS = 10  # maximum number of Lloyd iterations in the sampler 'representative'
RELEASED_STEPS = 100  # the same in DREAM's released code


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
    pool: number of random images of the class to cluster; 0 takes all.
    max_iterations: maximum number of Lloyd iterations.
    pick: 'members' starts from k-means++, leaves no cluster empty, and chooses the nearest member of each cluster, so
        that no image is chosen twice. 'released' follows DREAM's released code: k-means starts from random rows and
        leaves an empty cluster's centre at zero, and the nearest of all images is chosen, so an image may be chosen
        twice.
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


@SAMPLERS.register("representative")
@dataclass
class RepresentativeSampler(IntervalSampler):
    """DREAM's batches: the images nearest to the centres of k-means on features (DREAM §3.3).

    Every ``interval`` inner iterations each class is clustered into batch / ``per_cluster`` clusters, and the
    ``per_cluster`` images nearest to each centre supervise the next ``interval`` iterations. Features come from the
    ``embed`` passed to ``prepare``: in DREAM, the current network's.

    lloyd: passed to ``kmeans`` if several classes are clustered together.
    """

    per_cluster: int = 1
    lloyd: Callable[..., tuple[Tensor, ...]] | None = None

    @classmethod
    def execution(cls, strategy: Strategy) -> dict[str, Any]:
        """See ``Sampler.execution``."""
        lloyd = strategy.cuda_graph("lloyd", partial(lloyd_steps, most=CLUSTERING_STEPS))
        return super().execution(strategy) | {"lloyd": lloyd}

    def choose(self, label: int, members: Tensor, rng: torch.Generator, embed: Embed, predict: Predict) -> Tensor:
        """See ``IntervalSampler.choose``."""
        return self.choose_together({label: members}, {label: rng}, embed)[label]

    def choose_all(
        self, members: dict[int, Tensor], rngs: dict[int, torch.Generator], embed: Embed, predict: Predict
    ) -> dict[int, Tensor]:
        """See ``IntervalSampler.choose_all``; on a GPU, all classes at once if they have equally many images."""
        if self.data.images.is_cuda and len({len(rows) for rows in members.values()}) == 1:
            return self.choose_together(members, rngs, embed)
        return super().choose_all(members, rngs, embed, predict)

    def choose_together(
        self, members: dict[int, Tensor], rngs: dict[int, torch.Generator], embed: Embed
    ) -> dict[int, Tensor]:
        """Return the representatives of equally large classes, by one batched k-means call, each class on its own."""
        count = len(next(iter(members.values())))
        per_cluster = min(self.per_cluster, count)
        k = min(self.batch, count) // per_cluster
        features = embed(self.data.pixels(torch.cat(list(members.values())))).float()
        features = features.unflatten(0, (len(members), count))  # (K, n, D)
        lloyd = self.lloyd if len(members) > 1 and features.numel() <= MAX_GRAPHED_FEATURES else None
        clusters = kmeans(
            features, k, list(rngs.values()), max_iterations=CLUSTERING_STEPS, start="random", lloyd=lloyd
        )
        nearest = nearest_members(features, clusters, per_cluster)
        return {label: rows[indices] for (label, rows), indices in zip(members.items(), nearest, strict=True)}


@SAMPLERS.register("released")
@dataclass
class ReleasedSampler(IntervalSampler):
    """DREAM's batches as its released code chooses them.

    Features are of un-normalised images; k-means starts from random rows and takes up to 100 Lloyd steps; the centre of
    an empty cluster stays at zero; the ``per_cluster`` nearest of all the class's images are taken for each centre, so
    a row may be chosen twice.
    """

    normalised_features: ClassVar[bool] = False
    per_cluster: int = 1

    def choose(self, label: int, members: Tensor, rng: torch.Generator, embed: Embed, predict: Predict) -> Tensor:
        """See ``IntervalSampler.choose``."""
        features = embed(self.data.pixels(members)).float().unsqueeze(0)  # (1, n, D)
        per_cluster = min(self.per_cluster, len(members))
        k = min(self.batch, len(members)) // per_cluster
        clusters = kmeans(features, k, rng, max_iterations=RELEASED_STEPS, start="random", keep_empty=True)
        nearest = squared_distances(features, clusters.centers)[0].topk(per_cluster, dim=0, largest=False).indices
        return members[nearest.T.flatten()]
