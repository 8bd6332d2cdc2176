"""Selection rules against examples worked by hand and against looking at every subset."""

import itertools

import pytest
import torch

from dreamlib.registry import UnknownNameError
from dreamlib.selection import SELECTIONS, herding, k_center, select


def pixels(images):
    return images.flatten(1)


def test_herding_by_hand():
    # The mean is 6. First 7; then the pair of mean 5.5, (7 + 4)/2, before (7 + 1)/2 = 4 and (7 + 12)/2 = 9.5; then
    # (11 + 6)/3 = 17/3 before (11 + 12)/3 = 23/3; then (17 + 12)/4 = 29/4 before (17 + 1)/4 = 18/4.
    points = torch.tensor([[1.0], [4.0], [6.0 + 2.0**-6], [7.0], [12.0 - 2.0**-6]])
    assert herding(torch.ones(4, 2), 4).sort().values.tolist() == [0, 1, 2, 3]


def test_k_center_by_hand():
    # On a line, mean 3.75: 3 is nearest; 12 is 9 away; then 0 (3 from 3) beats 1 (2) and 2.5 (0.5).
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


@pytest.mark.parametrize("rule", SELECTIONS.names())
def test_select_stays_in_the_class_repeats_nothing_and_repeats_itself(rule, toy_data, global_generators_untouched):
    data = toy_data(per_class=12)
    rows = select(data, 5, rule, 0, pixels)
    assert rows.shape == (3, 5)
    for label in range(3):
        assert (data.labels[rows[label]] == label).all()
        assert rows[label].unique().numel() == 5
    assert torch.equal(rows, select(data, 5, rule, 1, pixels))  # nothing is drawn, so the seed says nothing,
    pools = [select(data, 5, rule, seed, pixels, pool=6) for seed in (0, 0, 1)]  # until a pool is drawn
    assert torch.equal(pools[0], pools[1])
    assert not torch.equal(pools[0], pools[2])


def test_herding_keeps_the_mean_better_than_chance(toy_data):
    data = toy_data(per_class=40)
    chosen, mean = select(data, 8, "herding", 0, pixels)[0], data.images[data.of_class(0)].mean(0)
    first = data.of_class(0)[:8]
    assert (data.images[chosen].mean(0) - mean).norm() < 0.5 * (data.images[first].mean(0) - mean).norm()


def test_refusals(toy_data):
    with pytest.raises(UnknownNameError, match="did you mean 'herding'"):
        select(toy_data(), 1, "hering", 0, pixels)
    with pytest.raises(ValueError, match="cannot select 13 of 12 images of a class; ask for 1 to 12"):
        select(toy_data(), 13, "k_center", 0, pixels)
