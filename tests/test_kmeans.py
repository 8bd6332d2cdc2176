"""k-means against scikit-learn's, against itself one problem at a time, and where points run out."""

import pytest
import torch
from sklearn.cluster import KMeans

from dreamlib.sampling import kmeans as clustering_module
from dreamlib.sampling.kmeans import Clustering, _sums, kmeans, nearest_members, squared_distances


def blobs(batch, n, k, dimensions, seed, spread=0.1):
    """(batch, n, D) points around k random centres per problem, every blob with n // k points or one more."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(batch, k, dimensions, generator=rng, dtype=torch.float64)
    which = torch.arange(n) % k
    return centers[:, which] + spread * torch.randn(batch, n, dimensions, generator=rng, dtype=torch.float64)


def random_starts(points, k, seed):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(points.shape[1], generator=rng)[:k] for _ in range(len(points))])
    return points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[2]))


@pytest.fixture
def zero_tolerance(monkeypatch):
    """Stop only when no point changes its cluster."""
    monkeypatch.setattr(clustering_module, "TOLERANCE", 0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_squared_distances_equal_a_loop():
    a, b = blobs(2, 5, 2, 3, 0), blobs(2, 4, 2, 3, 1)
    expected = [[[float(((p - c) ** 2).sum()) for c in b[i]] for p in a[i]] for i in range(2)]
    torch.testing.assert_close(squared_distances(a, b), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.usefixtures("zero_tolerance")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("batch", "n", "k", "dimensions", "spread"), [(1, 60, 4, 2, 0.1), (3, 80, 7, 5, 2.0)])
def test_same_start_gives_scikit_learns_labels_and_inertia(seed, batch, n, k, dimensions, spread):
    points = blobs(batch, n, k, dimensions, seed, spread)
    start = random_starts(points, k, seed)
    clustering = kmeans(points, k, generator(), max_iterations=300, start=start)
    for b in range(batch):
        reference = KMeans(k, init=start[b].numpy(), n_init=1, max_iter=300, tol=0.0, algorithm="lloyd")
        reference.fit(points[b].numpy())
        assert clustering.assignment[b].tolist() == reference.labels_.tolist()
        assert clustering.inertia[b].item() == pytest.approx(reference.inertia_, rel=1e-9)
        torch.testing.assert_close(clustering.centers[b], torch.from_numpy(reference.cluster_centers_))


@pytest.mark.parametrize("by_product", [True, False], ids=["product", "adding"])
def test_sums_of_clusters_equal_a_hand_worked_case(by_product):
    points = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[10.0, 0.0], [20.0, 0.0], [30.0, 1.0]]])
    assignment = torch.tensor([[2, 0, 2], [1, 1, 0]])
    expected = [[[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]], [[30.0, 1.0], [30.0, 0.0], [0.0, 0.0]]]
    assert _sums(points, assignment, 3, by_product=by_product).tolist() == expected


def test_sums_by_adding_equal_those_by_product_at_the_size_of_a_batch():
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(2, 512, 64, generator=rng, dtype=torch.float64)
    assignment = torch.randint(128, (2, 512), generator=rng)
    ways = [_sums(points, assignment, 128, by_product=each) for each in (True, False)]
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("zero_tolerance")
def test_batched_equals_one_by_one():
    points = blobs(5, 50, 6, 3, 7, spread=1.0)
    start = random_starts(points, 6, 7)
    # A problem that has converged stands still while others go on, so all are run to convergence.
    together = kmeans(points, 6, generator(), max_iterations=200, start=start)
    for b in range(5):
        alone = kmeans(points[b : b + 1], 6, generator(), max_iterations=200, start=start[b : b + 1])
        assert torch.equal(together.assignment[b], alone.assignment[0])
        torch.testing.assert_close(together.centers[b], alone.centers[0])
        torch.testing.assert_close(together.inertia[b], alone.inertia[0])


@pytest.mark.usefixtures("zero_tolerance")
def test_inertia_never_rises_with_iterations():
    points = blobs(2, 100, 9, 4, 3, spread=2.0)
    start = random_starts(points, 9, 3)
    runs = [kmeans(points, 9, generator(), max_iterations=i, start=start) for i in range(1, 15)]
    inertias = torch.stack([run.inertia for run in runs])
    assert bool((inertias.diff(dim=0) <= 1e-9).all())
    assert [run.iterations for run in runs[:3]] == [1, 2, 3]


def degenerate():
    few = torch.tensor([[0.0], [1.0], [5.0]]).repeat_interleave(torch.tensor([10, 1, 9]), 0)
    return {
        "duplicated": (few[None], 5),
        "k = n": (blobs(2, 9, 3, 2, 0).float(), 9),
        "all equal": (torch.full((3, 8, 2), 0.3), 4),
        "all equal, k = n": (torch.full((1, 6, 2), 0.3), 6),
        "one cluster": (blobs(1, 7, 2, 2, 0).float(), 1),
        "one point": (torch.zeros(1, 1, 3), 1),
    }


@pytest.mark.parametrize("start", ["random", "k-means++"])
@pytest.mark.parametrize("case", degenerate())
def test_no_cluster_is_ever_empty(case, start):
    points, k = degenerate()[case]
    for seed in range(5):
        clustering = kmeans(points, k, generator(seed), start=start)
        assert bool(clustering.centers.isfinite().all())
        for assigned in clustering.assignment:
            assert torch.bincount(assigned, minlength=k).min() >= 1
        rows = nearest_members(points, clustering)
        assert all(len(set(r.tolist())) == k for r in rows)


def test_a_far_start_that_attracts_nobody_is_refilled_with_the_worst_placed_point():
    points = torch.tensor([[[0.0], [0.1], [0.2], [7.0]]])
    clustering = kmeans(points, 2, generator(), start=torch.tensor([[[0.1], [1e6]]]))
    assert clustering.assignment.tolist() == [[0, 0, 0, 1]]
    torch.testing.assert_close(clustering.centers, torch.tensor([[[0.1], [7.0]]]))


@pytest.mark.parametrize("k", [0, 5])
def test_more_clusters_than_images_is_refused(k):
    with pytest.raises(ValueError, match=rf"{k} clusters for 4 images: choose at most 4"):
        kmeans(torch.zeros(1, 4, 2), k, generator())


@pytest.mark.parametrize("start", ["random", "k-means++"])
def test_starts_are_of_the_generator_and_of_nothing_else(start, global_generators_untouched):
    points = blobs(2, 60, 5, 3, 0, spread=2.0)
    first, again, other = (kmeans(points, 5, generator(s), start=start, max_iterations=1) for s in (0, 0, 1))
    assert torch.equal(first.centers, again.centers)
    assert not torch.equal(first.centers, other.centers)


def test_plus_plus_finds_separated_blobs_where_random_rows_miss_some():
    points = blobs(40, 100, 10, 2, 0, spread=1e-3)
    blob = (torch.arange(100) % 10).expand(40, -1)

    def found_all(start):
        """Share of problems whose every blob is one cluster after the first step, when no centre has moved far yet."""
        assignment = kmeans(points, 10, generator(0), start=start, max_iterations=1).assignment
        return sum(
            len(set(zip(b, a, strict=True))) == 10 for b, a in zip(blob.tolist(), assignment.tolist(), strict=True)
        )

    assert found_all("k-means++") >= 38
    assert found_all("random") <= 4  # 10!/10^10 · … of random draws hit ten blobs once each


def test_plus_plus_draws_in_proportion_to_the_squared_distance():
    """Points at 0, 1 and 3: after row 0 the weights are 1 and 9, so row 2 comes in nine of ten draws."""
    points = torch.tensor([[[0.0], [1.0], [3.0]]]).expand(6000, -1, -1)
    centers = kmeans(points, 2, generator(0), start="k-means++", max_iterations=1).centers
    # Pairs by their final means: {0, 1 | 3} from starts (0, 3), (1, 3); {0 | 1, 3} only from starts (0, 1).
    split_low = (centers.amin((1, 2)) == 0).double().mean().item()
    # P(start 0) · 1/10 + P(start 1) · 1/5 (distances 1 and 4 to 0 and 3); from start 3: 9 and 4, never the pair (0, 1).
    assert split_low == pytest.approx((1 / 10 + 1 / 5) / 3, abs=0.012)


# ---- the images nearest to the centres ------------------------------------------------------------------------------


def test_nearest_members_equal_brute_force():
    points = blobs(3, 60, 5, 4, 2, spread=1.0)
    clustering = kmeans(points, 5, generator())
    rows = nearest_members(points, clustering, per_cluster=3).view(3, 5, 3)
    for b in range(3):
        for cluster in range(5):
            members = [i for i in range(60) if clustering.assignment[b, i] == cluster]
            by_distance = sorted(members, key=lambda i: float((points[b, i] - clustering.centers[b, cluster]).norm()))
            assert rows[b, cluster].tolist() == by_distance[:3]


def test_a_small_cluster_borrows_the_nearest_free_points():
    points = torch.tensor([[[0.0], [0.2], [0.5], [9.0], [20.0]]])
    clustering = Clustering(torch.tensor([[[0.1], [9.0]]]), torch.tensor([[0, 0, 0, 1, 1]]), torch.zeros(1), 1)
    lone = Clustering(clustering.centers, torch.tensor([[0, 0, 0, 1, 0]]), torch.zeros(1), 1)
    assert sorted(nearest_members(points, clustering, 2)[0, 2:].tolist()) == [3, 4]
    rows = nearest_members(points, lone, 2)[0].tolist()
    assert sorted(rows[:2]) == [0, 1]
    assert rows[2:] == [3, 2]  # 0.5 is nearer to 9 than 20 is


@pytest.mark.parametrize(("n", "k", "per_cluster"), [(12, 3, 4), (13, 4, 3), (40, 5, 8), (6, 6, 1)])
@pytest.mark.parametrize("equal", [False, True])
def test_no_row_twice_however_few_points_there_are(n, k, per_cluster, equal):
    points = torch.zeros(2, n, 2) if equal else blobs(2, n, k, 2, 1, spread=3.0).float()
    rows = nearest_members(points, kmeans(points, k, generator()), per_cluster)
    assert rows.shape == (2, k * per_cluster)
    assert all(len(set(r.tolist())) == k * per_cluster for r in rows)


@pytest.mark.parametrize(("k", "per_cluster"), [(3, 4), (2, 11)])
def test_more_members_than_images_is_refused(k, per_cluster):
    points = blobs(1, 10, 3, 2, 0)
    with pytest.raises(ValueError, match=rf"{k} clusters × {per_cluster} images need {k * per_cluster} images.*has 10"):
        nearest_members(points, kmeans(points, k, generator()), per_cluster)
