"""Batched k-means on the device: B independent problems of n points at once, none of their clusters ever empty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clustering:
    """What k-means found: ``centers`` (B, k, D), ``assignment`` (B, n) in [0, k), ``inertia`` (B,), iterations used."""

    centers: Tensor
    assignment: Tensor
    inertia: Tensor
    iterations: int


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """(B, n, D) and (B, k, D) → squared Euclidean distances (B, n, k), clamped at 0 against rounding.

    >>> squared_distances(torch.tensor([[[0., 0.], [3., 4.]]]), torch.zeros(1, 1, 2)).tolist()
    [[[0.0], [25.0]]]
    """
    # About the mean: the expanded square loses digits where features are far from zero and close to each other.
    middle = points.mean(1, keepdim=True)
    points = points - middle
    return _expanded(points, points.square().sum(-1, keepdim=True), centers - middle)


def _expanded(points: Tensor, squares: Tensor, centers: Tensor) -> Tensor:
    """‖p‖² − 2 p·c + ‖c‖² with ``squares`` (B, n, 1) known: k-means asks for the same points' many times."""
    return torch.baddbmm(squares + centers.square().sum(-1).unsqueeze(1), points, centers.mT, alpha=-2).clamp_min_(0)


def _plus_plus(points: Tensor, squares: Tensor, k: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """k-means++ starting rows (B, k): each next row drawn with probability ∝ squared distance to the chosen ones."""
    batch, n, _ = points.shape
    each = batch // len(rngs)
    rows = torch.cat([torch.randint(n, (each, 1), generator=rng) for rng in rngs]).to(points.device)
    nearest = torch.full((batch, n), torch.inf, dtype=points.dtype, device=points.device)
    draws = torch.cat([torch.rand(k, each, 1, generator=rng, dtype=torch.float64) for rng in rngs], 1).to(points.device)
    take = torch.arange(batch, device=points.device).unsqueeze(1)
    for j in range(1, k):
        latest = points[take, rows[:, -1:]]  # (B, 1, D)
        nearest = torch.minimum(nearest, _expanded(points, squares, latest).squeeze(-1))
        nearest.scatter_(1, rows, 0.0)  # a chosen row is never drawn again, whatever the rounding says
        weights = nearest.double().cumsum(1)
        # All remaining points coincide with a chosen one: any other row will do, so weigh them equally.
        flat = torch.ones_like(weights).scatter_(1, rows, 0.0).cumsum(1)
        weights = torch.where(weights[:, -1:] > 0, weights, flat)
        drawn = torch.searchsorted(weights, draws[j] * weights[:, -1:], right=True).clamp_max_(n - 1)
        rows = torch.cat([rows, drawn], 1)
    return rows


def _random_rows(batch: int, n: int, k: int, rngs: Sequence[torch.Generator]) -> Tensor:
    drawn = torch.cat([torch.rand(batch // len(rngs), n, generator=rng) for rng in rngs])
    return drawn.topk(k, dim=1).indices


def _sizes(assignment: Tensor, k: int) -> Tensor:
    """How many points each cluster has, (B, k)."""
    counts = torch.zeros(assignment.shape[0], k, dtype=torch.long, device=assignment.device)
    return counts.scatter_add_(1, assignment, torch.ones_like(assignment))


def _refill_empty(distances: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Give every empty cluster the point that lies worst in its own cluster of two or more."""
    counts = _sizes(assignment, k)
    if bool((counts > 0).all()):
        return assignment
    assignment = assignment.clone()
    own = distances.gather(2, assignment.unsqueeze(2)).squeeze(2)  # (B, n)
    for b, cluster in torch.nonzero(counts == 0).tolist():
        movable = counts[b, assignment[b]] > 1
        worst = int(torch.where(movable, own[b], -1.0).argmax())
        counts[b, assignment[b, worst]] -= 1
        counts[b, cluster] += 1
        assignment[b, worst] = cluster
        own[b, worst] = 0.0
    return assignment


def _sums(points: Tensor, assignment: Tensor, k: int, *, by_product: bool) -> Tensor:
    """Each cluster's sum of points, (B, k, D): the product with a 0-1 matrix, or by adding each point where it belongs.

    Adding does 1/k of the work. On a GPU, though, its order varies from run to run, and with it the last bits.
    """
    if by_product:
        return torch.bmm(torch.nn.functional.one_hot(assignment, k).to(points.dtype).mT, points)
    batch, _, width = points.shape
    rows = assignment + k * torch.arange(batch, device=points.device).unsqueeze(1)  # of all problems' clusters in a row
    sums = points.new_zeros(batch * k, width)
    return sums.index_add_(0, rows.flatten(), points.flatten(0, 1)).view(batch, k, width)


def lloyd_steps(
    points: Tensor, squares: Tensor, centers: Tensor, threshold: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``kmeans`` from ``centers`` on without a wait for the device: what a CUDA graph can record.

    Takes points (B, n, D) about their mean, their squares (B, n, 1), the stopping ``threshold`` (B,) and the ``most``
    steps to do; those after the last by k-means' rules leave the centres where they are. Returns centres (B, k, D),
    assignment (B, n), inertia (B,), the number of steps and whether a cluster was empty on the way, which makes the
    outcome useless.
    """
    k, previous = centers.shape[1], None
    done = torch.zeros((), dtype=torch.bool, device=points.device)
    empty, used = done, torch.zeros((), dtype=torch.long, device=points.device)
    for _ in range(most):
        used = used + ~done
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
    return centers, assignment, _inertia(distances, assignment), used, empty


def _inertia(distances: Tensor, assignment: Tensor) -> Tensor:
    return distances.gather(2, assignment.unsqueeze(2)).sum((1, 2))


def _means(points: Tensor, assignment: Tensor, k: int, empty: Tensor) -> Tensor:
    count = _sizes(assignment, k).unsqueeze(-1)  # (B, k, 1)
    return torch.where(count > 0, _sums(points, assignment, k, by_product=points.is_cuda) / count.clamp_min(1), empty)


def kmeans(
    points: Tensor,
    k: int,
    rng: torch.Generator | Sequence[torch.Generator],
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    start: str | Tensor = "k-means++",
    keep_empty: bool = False,
    lloyd: Callable[..., tuple[Tensor, ...]] | None = None,
) -> Clustering:
    """Lloyd's algorithm on B problems at once; used to start canvases and to choose mini-batches (DREAM, section 3).

    ``points`` is (B, n, D); ``start`` is 'k-means++', 'random' rows, or centres (B, k, D) to go on from. Stops when no
    point changes cluster or the centres move less than ``tolerance`` × the mean feature variance (scikit-learn's
    rule). A cluster that loses its last point is given the worst-placed point of another; with ``keep_empty`` it stays
    empty with its centre at zero instead, as in DREAM's released code. ``rng`` draws for all problems, or one of B for
    each: then a problem's start does not depend on those beside it. ``lloyd`` is ``lloyd_steps`` of at most as many
    steps, or a recording of that: a GPU is then asked for all of them in one go; not with ``keep_empty``.

    Raises ValueError unless 1 ≤ k ≤ n, and for another number of generators.

    >>> points = torch.tensor([[[0.0], [0.2], [9.0], [9.4]]])
    >>> kmeans(points, 2, torch.Generator().manual_seed(0)).centers.flatten().sort().values
    tensor([0.1000, 9.2000])
    """
    batch, n, _ = points.shape
    if not 1 <= k <= n:
        raise ValueError(f"k-means needs 1 ≤ clusters ≤ images; got {k} clusters for {n} images: ask for at most {n}")
    rngs = [rng] if isinstance(rng, torch.Generator) else rng
    if lloyd is not None and keep_empty:
        raise ValueError("lloyd gives an empty cluster another point; call kmeans without it for keep_empty")
    if len(rngs) not in (1, batch):
        raise ValueError(f"{len(rngs)} generators for {batch} problems; give one for all of them or one for each")
    # About the mean (see squared_distances), once for all iterations.
    middle = points.mean(1, keepdim=True)
    points = points - middle
    squares = points.square().sum(-1, keepdim=True)
    if isinstance(start, Tensor):
        centers = start - middle
    else:
        choose = {
            "k-means++": lambda: _plus_plus(points, squares, k, rngs),
            "random": lambda: _random_rows(batch, n, k, rngs),
        }
        rows = choose[start]().to(points.device, non_blocking=True)
        centers = points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
    threshold = tolerance * squares.mean((1, 2)) / points.shape[-1]  # (B,): the mean variance, points having mean zero
    if lloyd is not None:
        ahead, assignment, inertia, used, empty = lloyd(points, squares, centers, threshold)
        iterations, was_empty = torch.stack([used, empty.long()]).tolist()  # waits for the device
        if not was_empty:  # else again, below, where a cluster that loses its last point is given another
            return Clustering(ahead + middle, assignment.clone(), inertia.clone(), iterations)
    previous, iteration = None, 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        distances = _expanded(points, squares, centers)
        assignment = distances.argmin(2) if keep_empty else _refill_empty(distances, distances.argmin(2), k)
        moved = _means(points, assignment, k, -middle)
        shift = (moved - centers).square().sum((1, 2))  # (B,)
        centers = moved
        if (previous is not None and torch.equal(previous, assignment)) or bool((shift <= threshold).all()):
            break
        previous = assignment
    distances = _expanded(points, squares, centers)
    assignment = distances.argmin(2) if keep_empty else _refill_empty(distances, distances.argmin(2), k)
    return Clustering(centers + middle, assignment, _inertia(distances, assignment), iteration)


def nearest_members(points: Tensor, clustering: Clustering, per_cluster: int = 1) -> Tensor:
    """Rows (B, k·per_cluster) of the points nearest each centre, cluster by cluster, no row twice.

    A cluster offers its own members first; where it has fewer than ``per_cluster``, the nearest points that nobody has
    taken fill its places. Raises ValueError when k·per_cluster exceeds the number of points.

    >>> points = torch.tensor([[[0.0], [0.2], [0.3], [9.0]]])
    >>> found = kmeans(points, 2, torch.Generator().manual_seed(0))
    >>> sorted(nearest_members(points, found).flatten().tolist())
    [1, 3]
    """
    batch, n, _ = points.shape
    k = clustering.centers.shape[1]
    if k * per_cluster > n:
        raise ValueError(f"{k} clusters × {per_cluster} images need {k * per_cluster} images; the class has {n}")
    distances = squared_distances(points, clustering.centers)
    own = torch.nn.functional.one_hot(clustering.assignment, k).bool()
    chosen = distances.masked_fill(~own, torch.inf).topk(per_cluster, dim=1, largest=False, sorted=True)
    rows = chosen.indices.mT.reshape(batch, -1)  # (B, k·m), cluster-major
    short = torch.isinf(chosen.values.mT.reshape(batch, -1))
    for b, place in torch.nonzero(short).tolist():
        free = torch.ones(n, dtype=torch.bool, device=points.device)
        free[rows[b][~short[b]]] = False
        rows[b, place] = distances[b, :, place // per_cluster].masked_fill(~free, torch.inf).argmin()
        short[b, place] = False
    return rows
