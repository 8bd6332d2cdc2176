"""Selection rules against examples worked by hand and against looking at every subset."""

import itertools

import pytest
import torch

from dreamlib.settings import DistillParams
from dreamlib.synthetic.coresets import Herding, KCenter
from dreamlib.synthetic.initial import StartState

herding, k_center = Herding().select, KCenter().select


def state(data, info, ipc, seed=0, pool=0):
    """A start at factor 1 whose features are the pixels."""
    settings = DistillParams(factor=1)
    return StartState(data, info, settings, ipc, seed, data, pool, lambda: lambda images: images.flatten(1), None)


def test_herding_by_hand():
    # The mean is 6. First 7; then the pair of mean 5.5, (7 + 4)/2, before (7 + 1)/2 = 4 and (7 + 12)/2 = 9.5; then
    # (11 + 12)/3 = 7.67 before (11 + 1)/3 = 4.
    assert herding(torch.tensor([[1.0], [4.0], [7.0], [12.0]]), 4).tolist() == [2, 1, 3, 0]
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [1.0, 1.5], [1.0, 0.5]])
    assert herding(points, 2).tolist() == [4, 5]  # as near to the mean (1, 1) as each other: the lower row, its mirror
    assert herding(torch.ones(4, 2), 4).sort().values.tolist() == [0, 1, 2, 3]


def test_k_center_by_hand():
    # On a line, mean 3.75: 4 is nearest; 12 is 8 away; then 0, 4 away from 4; then 2.5, 1.5 away from 4.
    points = torch.tensor([[0.0], [1.0], [2.5], [3.0], [4.0], [12.0]])
    assert k_center(points, 4).tolist() == [4, 5, 0, 2]
    assert k_center(torch.ones(4, 2), 4).sort().values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_within_twice_the_best_radius(seed, rng):
    points = torch.rand(9, 2, generator=rng(seed), dtype=torch.float64)
    apart = torch.cdist(points, points)

    def radius(rows):
        return float(apart[:, rows].min(1).values.max())

    best = min(radius(list(rows)) for rows in itertools.combinations(range(9), 3))
    assert radius(k_center(points, 3).tolist()) <= 2 * best + 1e-12


@pytest.mark.parametrize("kind", [Herding, KCenter])
def test_rows_stay_in_the_class_repeat_nothing_and_repeat_themselves(
    kind, toy_data, toy_info, global_generators_untouched
):
    data, info = toy_data(per_class=12), toy_info()
    rows = kind().rows(state(data, info, 5))
    assert rows.shape == (3, 5)
    for label in range(3):
        assert (data.labels[rows[label]] == label).all()
        assert rows[label].unique().numel() == 5
    assert torch.equal(rows, kind().rows(state(data, info, 5, seed=1)))  # nothing is drawn, so the seed says nothing,
    pools = [kind().rows(state(data, info, 5, seed, pool=6)) for seed in (0, 0, 1)]  # until a pool is drawn
    assert torch.equal(pools[0], pools[1])
    assert not torch.equal(pools[0], pools[2])
    assert torch.equal(kind().start(state(data, info, 5)).canvases, data.images[rows.flatten()])


def test_herding_keeps_the_mean_better_than_chance(toy_data, rng):
    features = toy_data(per_class=40).images.flatten(1)
    mean = features.mean(0)
    chance = [float((features[torch.randperm(120, generator=rng(s))[:8]].mean(0) - mean).norm()) for s in range(50)]
    assert float((features[herding(features, 8)].mean(0) - mean).norm()) < min(chance)


def test_more_images_than_a_class_has_are_refused(toy_data, toy_info):
    with pytest.raises(ValueError, match="cannot select 13 of 12 images of a class; select at most as many"):
        KCenter().rows(state(toy_data(), toy_info(), 13))
