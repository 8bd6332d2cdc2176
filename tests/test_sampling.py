"""Mini-batches: of their class, no image twice, re-clustered when due, and the same after a restart."""

import threading
import time

import pytest
import torch

from dreamlib._engine.threads import Workers
from dreamlib.data.types import LabeledImages
from dreamlib.sampling import representatives
from dreamlib.sampling.ablations import BoundarySampler, CenterSampler
from dreamlib.sampling.kmeans import kmeans
from dreamlib.sampling.real_batches import SAMPLERS, EndlessPass, IntervalSampler, RandomSampler
from dreamlib.sampling.representatives import ReleasedSampler, RepresentativeSampler
from dreamlib.settings import DistillParams


def pixels(images):
    return images.flatten(1)


def drift(iteration):
    """An embedding that changes with the network, so that clusterings of different iterations differ."""
    weights = torch.randn(64, 5, generator=torch.Generator().manual_seed(iteration))
    return lambda images: images.flatten(1) @ weights


def guesses(images):
    """Logits of as many classes as any test has, from the pixels."""
    return images.flatten(1) @ torch.randn(images[0].numel(), 12, generator=torch.Generator().manual_seed(5))


def batches(sampler, iteration, embed=pixels, predict=guesses):
    sampler.prepare(iteration, embed, predict)
    return [sampler.rows(label, iteration) for label in range(sampler.data.num_classes)]


# ---- passes without end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch", "batches"), [(12, 4, 3), (11, 4, 2), (3, 8, 1), (5, 1, 5)])
def test_each_pass_is_a_permutation_without_its_incomplete_last_batch(count, batch, batches):
    order = EndlessPass(count, batch, 0, "test")
    assert order.batches == batches
    passes = [torch.cat([order.at(number * batches + step) for step in range(batches)]) for number in range(8)]
    for rows in passes:
        assert len(rows) == len(rows.unique()) == batches * min(batch, count)
        assert set(rows.tolist()) <= set(range(count))
    assert len({tuple(rows.tolist()) for rows in passes}) > 1
    if count % batch:
        assert len(torch.cat(passes).unique()) == count, "no row is left out of every pass"


def test_any_step_of_a_pass_can_be_asked_for_at_any_time(global_generators_untouched):
    steps = [EndlessPass(11, 3, 5, "test", 2).at(step).tolist() for step in range(12)]
    order = EndlessPass(11, 3, 5, "test", 2)
    assert [order.at(step).tolist() for step in reversed(range(12))] == steps[::-1]
    for other in (EndlessPass(11, 3, 6, "test", 2), EndlessPass(11, 3, 5, "other", 2), EndlessPass(11, 3, 5, "test")):
        assert [other.at(step).tolist() for step in range(12)] != steps


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("batch", [1, 6, 12])
def test_rows_are_of_the_class_and_never_twice(name, batch, toy_data, global_generators_untouched):
    data = toy_data(per_class=12)
    sampler = SAMPLERS[name](data, batch, seed=3)
    for iteration in range(12):
        for label, rows in enumerate(batches(sampler, iteration, drift(iteration))):
            assert len(rows) == batch
            assert len(rows.unique()) == batch or name == "released", "only there a row may come twice"
            assert data.labels[rows].tolist() == [label] * batch


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_small_class_gives_all_it_has(name):
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    data = LabeledImages(torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels, 2)
    small, large = batches(SAMPLERS[name](data, 5, seed=0), 0)
    assert sorted(small.tolist()) == [0, 3, 7]
    assert len(large) == 5


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_class_without_images_is_named(name):
    data = LabeledImages(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 2, 2]), 3)
    with pytest.raises(ValueError, match=r"classes \[1\] have no training image"):
        SAMPLERS[name](data, 2, seed=0)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_the_seed_decides(name, toy_data):
    data = toy_data(per_class=30)
    options = {} if name == "random" else {"pool": 15}  # a full class clusters much alike whatever the seed
    draw = lambda seed: torch.stack(batches(SAMPLERS[name](data, 6, seed=seed, **options), 0))  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_random_batches_are_passes_over_each_class_in_orders_of_its_own(toy_data):
    data = toy_data(per_class=13)
    sampler = RandomSampler(data, 6, seed=0)
    drawn = [[sampler.rows(label, iteration) for iteration in range(40)] for label in range(3)]
    for label, batches in enumerate(drawn):
        for first, second in zip(batches[::2], batches[1::2], strict=True):
            assert len(torch.cat([first, second]).unique()) == 12  # of 13, and another one is left out each time
        assert torch.equal(torch.cat(batches).unique(), data.of_class(label))
    places = [[data.of_class(c).tolist().index(row) for row in drawn[c][0].tolist()] for c in (0, 1)]
    assert places[0] != places[1]


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names() if issubclass(SAMPLERS[name], IntervalSampler)])
def test_classes_chosen_for_side_by_side_get_the_same_rows(name, toy_data, threads_restored):
    """One at a time the first time, which compiles, and then two: there each waits until another one has begun."""
    torch.set_num_threads(2)
    inside, most, met = 0, [], threading.Barrier(2, timeout=30)

    def together(function):
        def watched(images):
            nonlocal inside
            inside += 1
            most.append(inside)
            if not beside.chosen:
                time.sleep(0.02)  # for another one to come in, if it may
            else:
                met.wait()
            inside -= 1
            assert torch.get_num_threads() == 1
            return function(images)

        return watched

    data = toy_data(per_class=30, classes=4)
    alone, beside = SAMPLERS[name](data, 6, seed=0), SAMPLERS[name](data, 6, seed=0, workers=Workers(2))
    for iteration in (0, 10, 20):
        settings = {"embed": drift(iteration), "predict": guesses}
        expected = batches(alone, iteration, **settings)
        result = batches(beside, iteration, **{key: together(function) for key, function in settings.items()})
        assert all(map(torch.equal, result, expected))
        assert (max(most) == 1) == (iteration == 0)


def test_random_rows_need_no_memory(toy_data):
    data, fresh = toy_data(), RandomSampler
    used = fresh(data, 4, seed=0)
    history = [used.rows(1, iteration).tolist() for iteration in range(5)]
    assert fresh(data, 4, seed=0).rows(1, 3).tolist() == history[3]


def on_a_line(*values):
    """One class of 1×1 images."""
    images = torch.tensor(values).view(-1, 1, 1, 1)
    return LabeledImages(images, torch.zeros(len(images), dtype=torch.long), 1)


def test_center_takes_the_images_nearest_to_the_mean_by_hand():
    data = on_a_line(0.0, 0.9, 0.5, 0.4, 0.2)  # mean 0.4
    assert batches(CenterSampler(data, 3, seed=0), 0)[0].tolist() == [3, 2, 4]


def test_boundary_takes_the_images_most_taken_for_another_class_by_hand():
    data = LabeledImages(torch.arange(6.0).view(6, 1, 1, 1) / 10, torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 1], [1, 0, 4], [0, 1, 5], [0, -1, 0.5], [9, 1, 0]])
    look_up = lambda images: logits[(10 * images).round().flatten().long()]  # noqa: E731
    # class 0, rows 0 2 4: margins 2, −3, −0.5; class 1, rows 1 3 5: 2, −4, −8
    assert [b.tolist() for b in batches(BoundarySampler(data, 2, seed=0), 0, predict=look_up)] == [[2, 4], [5, 3]]


def test_boundary_without_predictions_says_what_it_needs(toy_data):
    with pytest.raises(ValueError, match="pass a predict function"):
        BoundarySampler(toy_data(), 4, seed=0).prepare(0, pixels)


@pytest.mark.parametrize("kind", [CenterSampler, BoundarySampler])
def test_kept_batches_change_when_the_interval_has_passed(kind, toy_data):
    sampler = kind(toy_data(per_class=20), 5, seed=0, interval=4)
    draws = [
        lambda x, i=i: x.flatten(1) @ torch.randn(64, 3, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    ]
    seen = [torch.stack(batches(sampler, i, draws[i // 4], draws[i // 4])) for i in range(8)]
    assert all(torch.equal(seen[i], seen[4 * (i // 4)]) for i in range(8))
    assert not torch.equal(seen[0], seen[4])


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_clusters_exactly_every_interval(interval, toy_data):
    calls = []

    def embed(images):
        calls.append(len(images))
        return images.flatten(1)

    sampler, when = RepresentativeSampler(toy_data(per_class=12), 6, seed=0, interval=interval), []
    for iteration in range(25):
        before = len(calls)
        sampler.prepare(iteration, embed)
        if len(calls) > before:
            when.append(iteration)
            assert calls[before:] == [12, 12, 12]  # one class at a time, all of it
    assert when == list(range(0, 25, interval))


@pytest.mark.parametrize("kind", [RepresentativeSampler, ReleasedSampler, CenterSampler])
def test_a_new_network_is_clustered_anew_whatever_the_interval(kind, toy_data):
    """Networks that serve 7 iterations at an interval of 4: chosen at their iterations 0 and 4, in their features."""
    sampler, when, seen = kind(toy_data(per_class=12), 6, seed=0, interval=4), [], []
    for iteration in range(21):
        calls = len(seen)
        sampler.prepare(iteration, lambda images: (seen.append(images), pixels(images))[1], guesses, iteration % 7)
        when += [iteration] if len(seen) > calls else []
    assert when == [0, 4, 7, 11, 14, 18]


def test_batches_stand_still_in_between(toy_data):
    sampler = RepresentativeSampler(toy_data(per_class=20), 5, seed=0, interval=4)
    seen = [torch.stack(batches(sampler, iteration, drift(iteration))) for iteration in range(8)]
    assert all(torch.equal(seen[i], seen[4 * (i // 4)]) for i in range(8))
    assert not torch.equal(seen[0], seen[4])


def test_a_fresh_sampler_goes_on_as_the_old_one_would(toy_data):
    data = toy_data(per_class=20)
    old = RepresentativeSampler(data, 5, seed=0, interval=4, pool=15)
    whole = [torch.stack(batches(old, i, drift(i))) for i in range(12)]
    at_boundary = RepresentativeSampler(data, 5, seed=0, interval=4, pool=15)
    assert all(torch.equal(torch.stack(batches(at_boundary, i, drift(i))), whole[i]) for i in range(8, 12))
    between = RepresentativeSampler(data, 5, seed=0, interval=4, pool=15)
    between.load_state({"chosen": dict(enumerate(whole[5]))})
    assert all(torch.equal(torch.stack(batches(between, i, drift(i))), whole[i]) for i in range(6, 12))


def planted(clusters=8, members=9, seed=0):
    """One class of ``clusters`` tight, far groups of images of very unequal size, the first group the largest."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.rand(clusters, 1, 8, 8, generator=rng)
    group = torch.tensor([0] * 100 + [c for c in range(1, clusters) for _ in range(members)])
    images = centers[group] + 0.001 * torch.randn(len(group), 1, 8, 8, generator=rng)
    return LabeledImages(images, torch.zeros(len(group), dtype=torch.long), 1), group


@pytest.fixture
def careful_start(monkeypatch):
    """Representatives of clusterings that start from k-means++, which finds every planted group."""
    monkeypatch.setattr(representatives, "kmeans", lambda *a, start, **options: kmeans(*a, **options))


def test_a_representative_batch_covers_groups_that_random_batches_miss(careful_start):
    data, group = planted()
    hit = {name: [] for name in SAMPLERS.names()}
    for seed in range(10):
        for name in hit:
            hit[name].append(len(set(group[batches(SAMPLERS[name](data, 8, seed), 0)[0]].tolist())))
    assert hit["representative"] == [8] * 10
    assert sum(hit["random"]) / 10 < 5.5  # three of five images are in the large group
    assert max(hit["center"]) <= 2  # the mean lies by the large group, and its images alone are near


def test_per_cluster_takes_that_many_of_each_group(careful_start):
    data, group = planted()
    rows = batches(RepresentativeSampler(data, 24, 0, per_cluster=3), 0)[0]
    assert torch.bincount(group[rows]).tolist() == [3] * 8
    assert group[rows].view(8, 3).unique(dim=1).shape == (8, 1)  # cluster by cluster


def test_pool_bounds_what_is_embedded(toy_data):
    data, seen = toy_data(per_class=30), []

    def embed(images):
        seen.append(images)
        return images.flatten(1)

    sampler = RepresentativeSampler(data, 6, seed=0, interval=1, pool=10)
    for iteration in range(2):
        sampler.prepare(iteration, embed)
    assert [len(images) for images in seen] == [10] * 6
    assert not torch.equal(seen[0], seen[3])  # another pool each time


def test_per_cluster_that_does_not_divide_names_one_that_does():
    with pytest.raises(ValueError, match=r"per_cluster = 5 must divide real_batch = 12; try 4"):
        DistillParams(sampler="representative", per_cluster=5, real_batch=12)


def test_rows_before_prepare_is_an_error(toy_data):
    with pytest.raises(RuntimeError, match="prepare"):
        RepresentativeSampler(toy_data(), 4, seed=0).rows(0, 0)


def test_some_classes_may_be_left_to_others(toy_data):
    some = RepresentativeSampler(toy_data(), 4, seed=0, classes=[0, 2])
    every = RepresentativeSampler(toy_data(), 4, seed=0)
    some.prepare(0, pixels)
    every.prepare(0, pixels)
    assert all(torch.equal(some.rows(c, 0), every.rows(c, 0)) for c in (0, 2))
    with pytest.raises(RuntimeError, match="include this class"):
        some.rows(1, 0)
