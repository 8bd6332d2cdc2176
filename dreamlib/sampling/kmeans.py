"""Batched k-means on the device: B independent problems of n points each, without empty clusters by default."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-4  # squared shift of converged centres, relative to the mean variance of a feature, as in scikit-learn


@dataclass(frozen=True)
class Clustering:
    """A result of k-means on B problems.

    centers: (B, k, D).
    assignment: (B, n), each point's cluster in [0, k).
    inertia: (B,), sum of squared distances to the assigned centres.
    iterations: number of Lloyd iterations, shared by all problems.
    """

    centers: Tensor
    assignment: Tensor
    inertia: Tensor
    iterations: int


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Return squared Euclidean distances (B, n, k) of points (B, n, D) to centres (B, k, D).

    >>> squared_distances(torch.tensor([[[0., 0.], [3., 4.]]]), torch.zeros(1, 1, 2)).tolist()
    [[[0.0], [25.0]]]
    """
    # Centred, because the expanded square cancels digits of points that are far from zero and close to each other.
    mean = points.mean(1, keepdim=True)
    points = points - mean
    return _expanded(points, points.square().sum(-1, keepdim=True), centers - mean)


def _expanded(points: Tensor, squares: Tensor, centers: Tensor) -> Tensor:
    """Return ‖p‖² − 2 p·c + ‖c‖² ≥ 0, (B, n, k), given ``squares`` ‖p‖² (B, n, 1), which k-means computes once."""
    return torch.baddbmm(squares + centers.square().sum(-1).unsqueeze(1), points, centers.mT, alpha=-2).clamp_min_(0)


def _plus_plus(points: Tensor, squares: Tensor, k: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """Return k-means++ initial rows (B, k), drawn with probability ∝ squared distance to the nearest row so far."""
    batch, n, _ = points.shape
    per_rng = batch // len(rngs)  # problems
    device = points.device
    rows = torch.cat([torch.randint(n, (per_rng, 1), generator=rng) for rng in rngs]).to(device)
    nearest = torch.full((batch, n), torch.inf, dtype=points.dtype, device=device)
    draws = torch.cat([torch.rand(k, per_rng, 1, generator=rng, dtype=torch.float64) for rng in rngs], 1).to(device)
    problems = torch.arange(batch, device=device).unsqueeze(1)
    for j in range(1, k):
        latest = points[problems, rows[:, -1:]]  # (B, 1, D)
        nearest = torch.minimum(nearest, _expanded(points, squares, latest).squeeze(-1))
        nearest.scatter_(1, rows, 0.0)  # exactly zero despite rounding, so that no row is drawn twice
        weights = nearest.double().cumsum(1)
        # If all points coincide with rows drawn before, draw uniformly from the other rows.
        uniform = torch.ones_like(weights).scatter_(1, rows, 0.0).cumsum(1)
        weights = torch.where(weights[:, -1:] > 0, weights, uniform)
        drawn = torch.searchsorted(weights, draws[j] * weights[:, -1:], right=True).clamp_max_(n - 1)
        rows = torch.cat([rows, drawn], 1)
    return rows


def _random_rows(batch: int, n: int, k: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """Return rows (B, k) drawn uniformly without replacement."""
    numbers = torch.cat([torch.rand(batch // len(rngs), n, generator=rng) for rng in rngs])
    return numbers.topk(k, dim=1).indices


def _sizes(assignment: Tensor, k: int) -> Tensor:
    """Return the number of points of each cluster, (B, k)."""
    counts = torch.zeros(assignment.shape[0], k, dtype=torch.long, device=assignment.device)
    return counts.scatter_add_(1, assignment, torch.ones_like(assignment))


def _refill_empty(distances: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Give each empty cluster the point farthest from its centre, taken from clusters of at least two points."""
    counts = _sizes(assignment, k)
    if bool((counts > 0).all()):
        return assignment
    assignment = assignment.clone()
    assigned_distance = distances.gather(2, assignment.unsqueeze(2)).squeeze(2)  # (B, n)
    for b, cluster in torch.nonzero(counts == 0).tolist():
        movable = counts[b, assignment[b]] > 1
        farthest = int(torch.where(movable, assigned_distance[b], -1.0).argmax())
        counts[b, assignment[b, farthest]] -= 1
        counts[b, cluster] += 1
        assignment[b, farthest] = cluster
        assigned_distance[b, farthest] = 0.0
    return assignment


def _sums(points: Tensor, assignment: Tensor, k: int, *, by_product: bool) -> Tensor:
    """Return each cluster's sum of points, (B, k, D), as a product with a one-hot matrix or by scattered additions.

    Scattered additions do 1/k of the work, but on a GPU their order, and so their rounding, varies from run to run.
    """
    if by_product:
        return torch.bmm(torch.nn.functional.one_hot(assignment, k).to(points.dtype).mT, points)
    batch, _, width = points.shape
    first = k * torch.arange(batch, device=points.device).unsqueeze(1)  # clusters are numbered over all problems
    rows = assignment + first
    sums = points.new_zeros(batch * k, width)
    return sums.index_add_(0, rows.flatten(), points.flatten(0, 1)).view(batch, k, width)


def lloyd_steps(
    points: Tensor, squares: Tensor, centers: Tensor, threshold: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run Lloyd's algorithm as a fixed sequence of operations that never synchronises, for a CUDA graph.

    points: (B, n, D), centred.
    squares: (B, n, 1), their squared norms.
    centers: (B, k, D), the initial centres.
    threshold: (B,), the squared shift of the centres below which a problem has converged.
    most: number of iterations; those after convergence leave the centres unchanged.

    Return centres (B, k, D), assignment (B, n), inertia (B,), the number of iterations until convergence, and whether
    a cluster was ever empty, in which case the result is invalid.
    """
    k, previous = centers.shape[1], None
    done = torch.zeros((), dtype=torch.bool, device=points.device)
    empty, iterations = done, torch.zeros((), dtype=torch.long, device=points.device)
    for _ in range(most):
        iterations = iterations + ~done
        assignment = _expanded(points, squares, centers).argmin(2)
        empty = empty | (_sizes(assignment, k) == 0).any()
        moved = torch.where(done, centers, _means(points, assignment, k, centers))
        shift = (moved - centers).square().sum((1, 2))
        done = done | (shift <= threshold).all()
        done = done if previous is None else done | (previous == assignment).all()
        centers, previous = moved, assignment
    distances = _expanded(points, squares, centers)
    assignment = distances.argmin(2)
    empty = empty | (_sizes(assignment, k) == 0).any()
    return centers, assignment, _inertia(distances, assignment), iterations, empty


def _inertia(distances: Tensor, assignment: Tensor) -> Tensor:
    """Return the sum of distances (B, n, k) at the assignment (B, n), (B,)."""
    return distances.gather(2, assignment.unsqueeze(2)).sum((1, 2))


def _means(points: Tensor, assignment: Tensor, k: int, empty: Tensor) -> Tensor:
    """Return the clusters' means (B, k, D); empty clusters get ``empty``, broadcast to that shape."""
    count = _sizes(assignment, k).unsqueeze(-1)  # (B, k, 1)
    return torch.where(count > 0, _sums(points, assignment, k, by_product=points.is_cuda) / count.clamp_min(1), empty)


def kmeans(
    points: Tensor,
    k: int,
    rng: torch.Generator | Sequence[torch.Generator],
    *,
    max_iterations: int = 50,
    start: str | Tensor = "k-means++",
    keep_empty: bool = False,
    lloyd: Callable[..., tuple[Tensor, ...]] | None = None,
) -> Clustering:
    """Run Lloyd's algorithm on B problems at once (DREAM, section 3: initial canvases and mini-batches).

    Stop when no point changes its cluster, when the centres have converged (see ``TOLERANCE``), or after
    ``max_iterations``.

    points: (B, n, D).
    k: number of clusters.
    rng: one generator for all problems, or one per problem, so that a problem's result does not depend on the others.
    max_iterations: maximum number of Lloyd iterations.
    start: 'k-means++', 'random' for random rows, or initial centres (B, k, D).
    keep_empty: leave a cluster without points empty, with its centre at zero, as DREAM's released code does. Otherwise
        it receives the point of another cluster that is farthest from its centre.
    lloyd: ``lloyd_steps`` with ``most=max_iterations``, or a CUDA graph of it, which submits all iterations to the GPU
        at once. Its result is discarded if a cluster becomes empty. Not with ``keep_empty``.

    Raise ValueError unless 1 ≤ k ≤ n, for a wrong number of generators, and for ``lloyd`` with ``keep_empty``.

    >>> points = torch.tensor([[[0.0], [0.2], [9.0], [9.4]]])
    >>> kmeans(points, 2, torch.Generator().manual_seed(0)).centers.flatten().sort().values
    tensor([0.1000, 9.2000])
    """
    batch, n, _ = points.shape
    if not 1 <= k <= n:
        raise ValueError(f"k-means needs 1 ≤ clusters ≤ images; got {k} clusters for {n} images: choose at most {n}")
    rngs = [rng] if isinstance(rng, torch.Generator) else rng
    if lloyd is not None and keep_empty:
        raise ValueError("lloyd does not support keep_empty; call kmeans without lloyd")
    if len(rngs) not in (1, batch):
        raise ValueError(f"{len(rngs)} generators for {batch} problems; give one for all of them or one for each")
    mean = points.mean(1, keepdim=True)
    points = points - mean  # for the reason given in squared_distances
    squares = points.square().sum(-1, keepdim=True)
    if isinstance(start, Tensor):
        centers = start - mean
    else:
        initial_rows = {
            "k-means++": lambda: _plus_plus(points, squares, k, rngs),
            "random": lambda: _random_rows(batch, n, k, rngs),
        }
        rows = initial_rows[start]().to(points.device, non_blocking=True)
        centers = points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
    threshold = TOLERANCE * squares.mean((1, 2)) / points.shape[-1]  # (B,)
    if lloyd is not None:
        final, assignment, inertia, *state = lloyd(points, squares, centers, threshold)
        iterations, empty = torch.stack([part.long() for part in state]).tolist()  # synchronises
        if not empty:  # otherwise run again below, which refills empty clusters
            return Clustering(final + mean, assignment.clone(), inertia.clone(), iterations)
    previous, iteration = None, 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        distances = _expanded(points, squares, centers)
        assignment = distances.argmin(2) if keep_empty else _refill_empty(distances, distances.argmin(2), k)
        moved = _means(points, assignment, k, -mean)
        shift = (moved - centers).square().sum((1, 2))  # (B,)
        centers = moved
        if (previous is not None and torch.equal(previous, assignment)) or bool((shift <= threshold).all()):
            break
        previous = assignment
    distances = _expanded(points, squares, centers)
    assignment = distances.argmin(2) if keep_empty else _refill_empty(distances, distances.argmin(2), k)
    return Clustering(centers + mean, assignment, _inertia(distances, assignment), iteration)


def nearest_members(points: Tensor, clustering: Clustering, per_cluster: int = 1) -> Tensor:
    """Return rows (B, k·per_cluster) of the points nearest to each centre, cluster by cluster, no row twice.

    points: (B, n, D).
    clustering: of these points.
    per_cluster: points per cluster. A cluster with fewer members is completed by the points nearest to its centre
        that are not chosen yet.

    Raise ValueError if k·per_cluster exceeds n.

    >>> points = torch.tensor([[[0.0], [0.2], [0.3], [9.0]]])
    >>> clustering = kmeans(points, 2, torch.Generator().manual_seed(0))
    >>> sorted(nearest_members(points, clustering).flatten().tolist())
    [1, 3]
    """
    batch, n, _ = points.shape
    k = clustering.centers.shape[1]
    if k * per_cluster > n:
        raise ValueError(f"{k} clusters × {per_cluster} images need {k * per_cluster} images; the class has {n}")
    distances = squared_distances(points, clustering.centers)
    is_member = torch.nn.functional.one_hot(clustering.assignment, k).bool()  # (B, n, k)
    chosen = distances.masked_fill(~is_member, torch.inf).topk(per_cluster, dim=1, largest=False, sorted=True)
    rows = chosen.indices.mT.reshape(batch, -1)  # (B, k·per_cluster), cluster by cluster
    missing = torch.isinf(chosen.values.mT.reshape(batch, -1))
    for b, place in torch.nonzero(missing).tolist():
        free = torch.ones(n, dtype=torch.bool, device=points.device)
        free[rows[b][~missing[b]]] = False
        rows[b, place] = distances[b, :, place // per_cluster].masked_fill(~free, torch.inf).argmin()
        missing[b, place] = False
    return rows
